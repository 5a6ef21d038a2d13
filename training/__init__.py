"""How the bundled pipeline is made: scenes, captions, tokenizer, VAE, CLIP, UNet, export and judgement."""
