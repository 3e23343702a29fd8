"""Which folder a run gets, what is refused, and that only what we have made is ever deleted."""

import json
from pathlib import Path

import pytest
from safetensors import SafetensorError

from mathrl.config import Config
from mathrl.errors import UserError
from mathrl.recipes import dump
from mathrl.run import owned as module
from mathrl.run.folder import RunFolder


def config(out: Path, **run) -> Config:
    return Config.model_validate({"recipe": "mine", "run": {"output_dir": str(out)} | run})


def begin(cfg: Config, **flags) -> RunFolder:
    """Check and open, as the train command does."""
    folder = RunFolder.of(cfg)
    folder.check(cfg, **({"resume": False, "overwrite": False} | flags))
    with folder.open(cfg, overwrite=flags.get("overwrite", False)):
        pass
    return folder


def tree(path: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["..", ".", "../esc", "a/b", "/tmp/x", "a\\b", "a\nb", "a\0b"])
def test_a_run_name_is_one_component_of_a_path(tmp_path, name):
    with pytest.raises(UserError, match=r"run\.name .* must be the name of one folder.*--run\.output_dir"):
        RunFolder.of(config(tmp_path, name=name))
    with pytest.raises(UserError, match=r"must be the name of one folder"):
        RunFolder.of(config(tmp_path).model_copy(update={"recipe": name}))


def test_a_run_lies_under_its_name_or_its_recipes(tmp_path):
    assert RunFolder.of(config(tmp_path)).path == tmp_path / "mine"
    assert RunFolder.of(config(tmp_path, name="my run ü")).path == tmp_path / "my run ü"


def test_overwrite_empties_a_run_and_nothing_else(tmp_path):
    folder = begin(config(tmp_path))
    (folder.path / "reference").mkdir()
    (folder.path / "metrics.jsonl").write_text("{}")
    beside = tmp_path / "other.txt"
    beside.write_text("mine")
    begin(config(tmp_path), overwrite=True)
    assert {p.name for p in folder.path.iterdir()} == {".mathrl-run", "config.toml"}
    assert beside.read_text() == "mine"


@pytest.mark.parametrize("content", ["config.toml", "notes.txt"])
def test_a_folder_without_our_marker_is_not_deleted(tmp_path, content):
    cfg, theirs = config(tmp_path), tmp_path / "mine"
    theirs.mkdir()
    (theirs / content).write_text("title = 'a site'\n")
    before = tree(theirs)
    with pytest.raises(UserError, match=r"deletes only folders that mathrl has made|is not a run"):
        begin(cfg, overwrite=True)
    with pytest.raises(UserError):
        begin(cfg, resume=True)
    assert tree(theirs) == before


def test_a_run_within_a_run_and_a_link_to_a_run_are_not_deleted(tmp_path):
    outer = begin(config(tmp_path))
    inner = begin(config(outer.path, name="inner"))
    with pytest.raises(UserError, match=rf"would delete {inner.path} as well"):
        begin(config(tmp_path), overwrite=True)
    (tmp_path / "link").symlink_to(inner.path)
    with pytest.raises(UserError, match="delete it yourself"):
        begin(config(tmp_path, name="link"), overwrite=True)
    assert inner.config.is_file()


def test_a_comparison_is_no_run(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / ".mathrl-comparison").write_text("{}")
    (folder / "config.toml").write_text(dump(config(tmp_path)))
    for flags in ({"resume": True}, {"overwrite": True}, {}):
        with pytest.raises(UserError, match="is a comparison and no run"):
            begin(config(tmp_path), **flags)


def test_killed_while_it_was_emptied_a_folder_holds_nothing(tmp_path, monkeypatch):
    """Neither what is left of the old run nor its configuration may meet the new one."""
    cfg = config(tmp_path)
    folder = begin(cfg)
    for name in ("checkpoints", "evaluations", "reference"):
        (folder.path / name).mkdir()

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "remove", killed)
        begin(cfg, overwrite=True)
    assert (folder.path / "reference").is_dir()
    other = config(tmp_path, seed=7)
    assert folder.check(other, resume=True, overwrite=False) is False, "there is nothing to go on from"
    begin(other)
    assert {p.name for p in folder.path.iterdir()} == {".mathrl-run", "config.toml"}


def test_what_a_killed_process_left_is_swept_and_a_folder_moved_aside_comes_back(tmp_path):
    cfg = config(tmp_path)
    folder = begin(cfg)
    (folder.path / ".summary.json.99.tmp").write_text("{")
    (folder.path / ".adapter.99.old").mkdir()  # killed between the two renames of a replacement
    (folder.path / ".adapter.99.tmp").mkdir()
    (folder.checkpoints / ".step-00000005.99.old").mkdir(parents=True)
    assert folder.check(cfg, resume=True, overwrite=False) is True
    begin(cfg, resume=True)
    found = {p.name for p in folder.path.iterdir()}
    assert found == {".mathrl-run", "config.toml", "adapter", "checkpoints"}
    assert [p.name for p in folder.checkpoints.iterdir()] == ["step-00000005"]  # before one is looked for


def test_where_no_folder_can_be_made_one_sentence_says_why(tmp_path):
    (tmp_path / "file").write_text("")
    for cfg, why in (
        (config(tmp_path / "file" / "runs"), rf"{tmp_path / 'file'} is no folder"),
        (config(tmp_path, name="n" * 300), "File name too long"),
        (config(tmp_path, name="file"), "is a file and no folder"),
        (config(Path("/proc/none")), "cannot be made"),
    ):
        with pytest.raises(UserError, match=why) as error:
            begin(cfg)
        assert "\n" not in str(error.value)


def test_a_full_disk_is_one_sentence_whatever_is_being_written(tmp_path):
    cfg, folder = config(tmp_path), RunFolder(tmp_path / "run")

    def by_python():
        Path("/dev/full").write_text("a report")

    def by_a_library():
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )  # as it says it

    for write in (by_python, by_a_library):
        told = f"^the run in {folder.path} cannot be written: the disk is full; make room"
        with pytest.raises(UserError, match=told), folder.open(cfg, overwrite=False):
            write()
    with pytest.raises(FileNotFoundError), folder.open(cfg, overwrite=False):
        (folder.path / "nothing").read_text()


def test_results_go_aside_once_and_a_kill_meanwhile_is_made_good(tmp_path):
    folder = begin(config(tmp_path))
    folder.evaluations.mkdir()
    for name in ("before.jsonl", "after.jsonl", "after.json", "held_out_templates_after.jsonl"):
        (folder.evaluations / name).write_text(name)
    folder.adapter.mkdir()
    assert folder.set_results_aside() is None
    assert (folder.evaluations / "after.jsonl").exists(), "an end without a summary is no result"
    folder.summary.write_text(json.dumps({"steps": 7}))
    aside = folder.earlier / "step-00000007"
    aside.mkdir(parents=True)
    folder.adapter.rename(aside / "adapter")  # as far as the killed process came
    assert folder.set_results_aside() == aside
    kept = {"adapter", "after.jsonl", "after.json", "held_out_templates_after.jsonl", "summary.json"}
    assert {p.name for p in aside.iterdir()} == kept
    assert [p.name for p in folder.evaluations.iterdir()] == ["before.jsonl"]
    folder.summary.write_text(json.dumps({"steps": 7}))
    folder.set_results_aside()
    assert (folder.earlier / "step-00000007-2" / "summary.json").is_file()
    assert {p.name for p in aside.iterdir()} == kept
