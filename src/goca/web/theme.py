"""How the page looks: the visitor's system fonts, light or dark as the system is, from 400 px in width."""

import gradio as gr

FONT = ("system-ui", "sans-serif")
MONO = ("ui-monospace", "monospace")

CSS = """
.gradio-container { width: 100% !important; max-width: 1280px !important; margin: 0 auto !important; }
.goca-head h1 { margin: 0; font-size: 1.4rem; }
.goca-head p { margin: 0; color: var(--body-text-color-subdued); }
.goca-alert {
  margin: 0; padding: .6rem .8rem; border-left: 4px solid var(--error-border-color, #dc2626);
  background: var(--background-fill-secondary); color: var(--body-text-color); overflow-wrap: anywhere;
}
.goca-alert.note { border-left-color: var(--color-accent); }
:is(.goca-legend, .goca-bars) table {
  width: 100%; margin: 0; border: 0 !important; border-collapse: collapse; font-variant-numeric: tabular-nums;
}
:is(.goca-legend, .goca-bars) tr {
  border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important;
}
:is(.goca-legend, .goca-bars) :is(th, td) {
  padding: .3rem .4rem !important; border: 0 !important; text-align: left; vertical-align: middle;
  color: var(--body-text-color); overflow-wrap: anywhere;
}
.goca-legend label { display: flex; gap: .5rem; align-items: center; }
.goca-legend input { accent-color: var(--color-accent); }
.goca-legend input[type=checkbox] { width: 1.1rem; height: 1.1rem; flex: none; }
.goca-legend input[type=color] { width: 2rem; height: 1.6rem; padding: 0; border: 0; background: none; }
.goca-legend input[type=range] { width: 100%; min-width: 4rem; max-width: 9rem; vertical-align: middle; }
.goca-legend input:focus-visible { outline: 2px solid var(--color-accent); outline-offset: 2px; }
.bar {
  position: relative; display: block; min-width: 5rem; height: 1.3rem; border-radius: 3px; overflow: hidden;
  background: var(--background-fill-secondary);
}
.bar i { position: absolute; inset: 0 auto 0 0; background: var(--color-accent); opacity: .45; }
.bar b { position: relative; padding-left: .4rem; font-weight: 400; line-height: 1.3rem; }
@media (max-width: 640px) {
  .goca-legend tr { display: grid; grid-template-columns: 1fr 1fr auto; align-items: center; }
  .goca-legend tbody th { grid-column: 1 / 3; }
  .goca-legend thead th:nth-child(2), .goca-legend thead th:nth-child(n + 4) { display: none; }
  .goca-legend thead label { white-space: nowrap; }
}
#segment-download, #generate-download { align-self: flex-end; }
.goca-maps .grid-wrap, .goca-thumbs .grid-wrap { min-height: 0 !important; }
.goca-maps .grid-container { grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)) !important; }
.goca-thumbs .grid-container { grid-template-columns: repeat(auto-fill, 112px) !important; }
.goca-picture img { max-height: 640px; object-fit: contain; }
.goca-bars caption { padding: .3rem .4rem; text-align: left; color: var(--body-text-color-subdued); }
.goca-bars th { width: 40%; font-weight: 400; }
.goca-bars button {
  margin: 0; padding: 0; border: 0; background: none; color: var(--link-text-color); font: inherit;
  text-align: left; text-decoration: underline; cursor: pointer;
}
.goca-bars button:focus-visible { outline: 2px solid var(--color-accent); outline-offset: 2px; }
.goca-layers h2 { margin: 0 !important; font-size: 1.1rem !important; }
.goca-layers p { margin: 0 !important; color: var(--body-text-color-subdued); }
.goca-layers ol { margin: .6rem 0 0; padding: 0; list-style: none; }
.goca-layers li { display: flex; gap: 1rem; padding: .6rem 0; border-top: 1px solid var(--border-color-primary); }
.goca-layers header { flex: 0 0 15rem; }
.goca-layers header b { font-weight: 400; overflow-wrap: anywhere; }
.goca-layers header span { color: var(--body-text-color-subdued); white-space: nowrap; }
.goca-layers li div { display: flex; flex-wrap: wrap; gap: .5rem; }
.goca-layers figure { margin: 0; width: 96px; }
.goca-layers img { width: 100%; margin: 0; image-rendering: pixelated; border-radius: 3px; }
.goca-layers figcaption { font-size: .8rem; text-align: center; font-variant-numeric: tabular-nums; }
@media (max-width: 640px) {
  .goca-layers li { flex-direction: column; gap: .4rem; }
  .goca-layers header { flex: none; }
  .goca-layers figure { width: calc((100% - 1.5rem) / 4); }
}
.goca-alert progress {
  margin-left: .5rem; vertical-align: middle; appearance: none; height: .6rem; border: 0; border-radius: 3px;
  overflow: hidden; background: var(--border-color-primary);
}
.goca-alert progress::-webkit-progress-bar { background: var(--border-color-primary); }
.goca-alert progress::-webkit-progress-value { background: var(--color-accent); }
.goca-alert progress::-moz-progress-bar { background: var(--color-accent); }
.dark { --color-accent: var(--primary-400); }
"""


def theme() -> gr.themes.Base:
    """The theme; its fonts need not be fetched, and its colours have enough contrast."""
    base = gr.themes.Default(primary_hue="teal", secondary_hue="teal", neutral_hue="slate", font=FONT, font_mono=MONO)
    return base.set(
        color_accent="*primary_700",
        block_info_text_color="*neutral_500",
        body_text_color_subdued="*neutral_500",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        link_text_color="*primary_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        checkbox_background_color_selected="*primary_700",
        checkbox_border_color_selected="*primary_700",
    )
