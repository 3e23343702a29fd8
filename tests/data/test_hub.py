"""What the hub is asked, and what one is told when it says no or nothing."""

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from mathrl.data.hub import check_model, on_hub
from mathrl.data.source import read_hub
from mathrl.errors import UserError


def answer(monkeypatch, error: Exception | None):
    def info(self, name, revision, timeout):
        if error:
            raise error

    monkeypatch.setattr(HfApi, "model_info", info)
    monkeypatch.setattr(HfApi, "dataset_info", info)


def test_a_hub_that_answers(monkeypatch):
    answer(monkeypatch, None)
    assert on_hub("model", "owner/model")
    check_model("owner/model")


@pytest.mark.parametrize(
    "error",
    [OfflineModeIsEnabled("off"), OSError("no route"), HfHubHTTPError.__bases__[0]("no connection")],
    ids=["offline", "no route", "client"],
)
def test_a_hub_out_of_reach_is_one_sentence(monkeypatch, error):
    answer(monkeypatch, error)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", constants.HF_HUB_OFFLINE)
    assert not on_hub("data set", "owner/data")
    with pytest.raises(UserError, match=r"'owner/none' is not on this machine and the hub cannot be reached"):
        check_model("owner/none")
    with pytest.raises(UserError, match=r"data set 'owner/none' is not on this machine.*--data.path"):
        read_hub("owner/none", "", "train")


def test_a_name_that_the_hub_does_not_have(monkeypatch):
    error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    answer(monkeypatch, error)
    with pytest.raises(UserError, match="there is no model 'owner/none' on the hub"):
        check_model("owner/none")
    with pytest.raises(UserError, match="there is no data set 'owner/none' on the hub"):
        on_hub("data set", "owner/none")


def test_what_is_no_name_is_told_with_its_neighbours(tmp_path, monkeypatch):
    (tmp_path / "reference").mkdir()
    with pytest.raises(UserError, match="there is no model folder .*'reference'"):
        check_model(str(tmp_path / "referense"))
    with pytest.raises(UserError, match="no config.json"):
        check_model(str(tmp_path / "reference"))
