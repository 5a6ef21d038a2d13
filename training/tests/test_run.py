"""All stages in a row: what is finished is left alone, what fails ends the run."""

from pathlib import Path

import pytest

from training import run


def finish(work: Path) -> None:
    """Put something where each stage's result belongs."""
    for _, result, _ in run.STAGES:
        folder = work / result if not Path(result).suffix else (work / result).parent
        folder.mkdir(parents=True, exist_ok=True)
        if folder != work / result:
            (work / result).touch()


def test_what_is_finished_is_left_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    finish(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    run.run(tmp_path, 0)
    assert sorted(tmp_path.rglob("*")) == before
    assert capfd.readouterr().out == ""


def test_every_stage_has_a_result_of_its_own_and_the_study_comes_last() -> None:
    results = [str(result) for _, result, _ in run.STAGES]
    assert len({*results}) == len(results)
    names = [" ".join(arguments) for arguments, _, _ in run.STAGES]
    transformers = names.index("judge --model joint")
    assert min(names.index(name) for name in names if name.startswith("unet --width")) > transformers
    assert {"export --model dit --percent 5", "export --model unet-0.25-seed1 --percent 100"} <= {*names}
    assert names[-1] == "scaling"


def test_two_runs_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(tmp_path)
    monkeypatch.setattr("sys.argv", ["run", "--work", str(tmp_path)])

    def second(work: Path, lock: int) -> None:
        with pytest.raises(SystemExit, match="already has a run in progress"):
            run.main()

    with monkeypatch.context() as patched:
        patched.setattr(run, "run", second)
        run.main()
    run.main()


@pytest.mark.slow
def test_the_unfinished_stage_runs_and_a_failure_ends_the_run(tmp_path: Path) -> None:
    finish(tmp_path)
    (tmp_path / "tokenizer").rmdir()
    (tmp_path / "namer/coarse.npy").unlink()
    (tmp_path / "scenes/train/contents.jsonl").write_text("")  # the namer has nothing to learn from
    with pytest.raises(SystemExit, match=r"namer: ended with code 1"):
        run.run(tmp_path, 0)
    assert (tmp_path / "tokenizer/tokenizer.json").exists()
