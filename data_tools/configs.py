"""Finds a shipped configuration by its name, in a wheel and in a checkout alike, and checks YAML from outside."""

from pathlib import Path

from data_tools.errors import InputError, reading
from data_tools.files import is_inside, read_text

MAX_BYTES, MAX_DEPTH = 1 << 20, 32  # of a YAML file
RUN_CONFIG = "config.yaml"  # in the folder of a run

_HERE = Path(__file__).resolve().parent


def config_folder(package: str) -> Path:
    """The folder of `package`'s YAML files: `PACKAGE/configs` in a wheel, `configs/PACKAGE` in a checkout."""
    installed = _HERE.parent / package / "configs"
    return installed if installed.is_dir() else _HERE.parent / "configs" / package


def config_names(package: str) -> list[str]:
    """The names of the configurations that `package` ships, sorted."""
    return sorted(path.stem for path in config_folder(package).glob("*.yaml"))


def find_config(package: str, spec: str) -> Path:
    """The YAML file that `spec` means: its path, a run's folder, or a shipped name without `.yaml`.

    Raises:
        InputError: there is neither such a file nor such a name; the message lists the names.
    """
    shipped = config_folder(package)
    for candidate in (Path(spec), shipped / f"{spec}.yaml", shipped / spec, Path(spec, RUN_CONFIG)):
        if candidate.is_file():
            return candidate
    names = ", ".join(config_names(package))
    raise InputError(f"{spec}: no such configuration file; the shipped ones are {names}")


def check_yaml(path: Path) -> None:
    """Check a YAML file before a library builds objects from it: its size and depth, and that it has no aliases.

    A few lines of aliases mean millions of values, or one that contains itself.

    Raises:
        InputError: the file cannot be read, is not YAML, or is larger or deeper than any configuration.
    """
    import yaml  # it takes longer to import than a usage error may take

    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path}: {path.stat().st_size} bytes; a configuration has at most {MAX_BYTES}")
    text, depth = read_text(path), 0
    with reading(path, "not YAML"):
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise InputError(f"{path}, line {event.start_mark.line + 1}: aliases (& and *) are not supported")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise InputError(f"{path}, line {event.start_mark.line + 1}: nested more than {MAX_DEPTH} deep")


def find_base(package: str, path: Path, base: object) -> Path:
    """The configuration that the one at `path` builds on: a file beside it, or a shipped one.

    Raises:
        InputError: `base` is not the name of either.
    """
    if not isinstance(base, str) or not is_inside(base) or ":" in base or base.startswith("~"):
        raise InputError(f"{path}: base: expected a shipped configuration or a file beside it, found {base!r}")
    name = f"{base.removesuffix('.yaml')}.yaml"
    found = next((file for file in (path.parent / name, config_folder(package) / name) if file.is_file()), None)
    if found is None:
        raise InputError(f"{path}: base: {name} is neither beside this file nor a shipped configuration")
    return found
