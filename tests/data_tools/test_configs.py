"""What a configuration's name means."""

import pytest

from data_tools.configs import config_folder, find_config
from data_tools.errors import InputError


def test_a_file_a_shipped_name_and_a_run_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = config_folder("extract") / "scenes.yaml"
    assert find_config("extract", "scenes") == find_config("extract", "scenes.yaml") == shipped
    run = tmp_path / "runs" / "own"
    run.mkdir(parents=True)
    with pytest.raises(InputError, match="no such configuration file; the shipped ones are butd_r101_airsplay"):
        find_config("extract", "runs/own")
    (run / "config.yaml").write_text("VERSION: 2\n")
    assert find_config("extract", "runs/own").resolve() == run / "config.yaml"
    run.rename(tmp_path / "scenes")
    assert find_config("extract", "scenes") == shipped  # a folder does not change what a command has meant
