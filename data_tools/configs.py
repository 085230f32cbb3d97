"""Finds a shipped configuration by its name, in a wheel and in a checkout alike."""

from pathlib import Path

from data_tools.errors import InputError

_HERE = Path(__file__).resolve().parent


def config_folder(package: str) -> Path:
    """The folder of `package`'s YAML files: `PACKAGE/configs` in a wheel, `configs/PACKAGE` in a checkout."""
    installed = _HERE.parent / package / "configs"
    return installed if installed.is_dir() else _HERE.parent / "configs" / package


def config_names(package: str) -> list[str]:
    """The names of the configurations that `package` ships, sorted."""
    return sorted(path.stem for path in config_folder(package).glob("*.yaml"))


def find_config(package: str, spec: str) -> Path:
    """The YAML file that `spec` means: a path to one, or the name of a shipped one without `.yaml`.

    Raises:
        InputError: there is neither such a file nor such a name; the message lists the names.
    """
    for candidate in (Path(spec), config_folder(package) / f"{spec}.yaml", config_folder(package) / spec):
        if candidate.is_file():
            return candidate
    names = ", ".join(config_names(package))
    raise InputError(f"{spec}: no such configuration file; the shipped ones are {names}")
