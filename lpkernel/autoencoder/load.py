"""From a source string to an autoencoder."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lpkernel.autoencoder.base import TorchAutoencoder
from lpkernel.autoencoder.embedded import DEFAULT_WEIGHTS, load_compact
from lpkernel.autoencoder.folder import read_config
from lpkernel.autoencoder.kl import KLAutoencoder, TinyAutoencoder
from lpkernel.autoencoder.protocol import Autoencoder
from lpkernel.autoencoder.vqmodel import VQModelAutoencoder
from lpkernel.errors import InputError, LpkernelError, short

FOLDER_CLASSES: dict[str, Callable[..., Autoencoder]] = {
    "VQModel": VQModelAutoencoder,
    "AutoencoderKL": KLAutoencoder,
    "AutoencoderTiny": TinyAutoencoder,
}
CHECKPOINTS = (".ckpt", ".pt", ".pth", ".bin")
ACCEPTED = (
    '"default", an lpkernel autoencoder file (.safetensors), a diffusers folder (VQModel, AutoencoderKL or '
    'AutoencoderTiny), or a plug-in "module:callable" or "path/to/file.py:callable"'
)


def load_autoencoder(
    source: str | Path = "default",
    device: str = "auto",
    dtype: str = "auto",
    compile: str = "auto",
    images: int | None = None,
) -> Autoencoder:
    """The autoencoder that `source` names.

    "default" is the embedded one; a .safetensors file is another of its format; a folder is a diffusers
    `VQModel`, `AutoencoderKL` or `AutoencoderTiny`; "module:callable" and "path/to/file.py:callable" are
    plug-ins, which run their author's code. Arguments follow "?" as key=value&key=value: image_size for
    a folder, anything (as strings) for a plug-in. `device` is "auto" or a torch device, `dtype` is
    "auto", "float32", "bfloat16" or "float16"; a plug-in gets the two if it accepts them.

    `compile` is "always" (torch.compile compiles the decoder when the first image is decoded), "never", or "auto": on a
    CUDA device if `images`, how many will be decoded, is large enough for it to pay. Compiling changes last bits.

    Raises InputError on anything else, MissingExtra without the package that a source needs.
    """
    autoencoder = _load(source, device, dtype)
    if isinstance(autoencoder, TorchAutoencoder):
        autoencoder.compile_decoder(compile, images)
    elif compile == "always":
        raise InputError(
            f'{source}: compile="always" needs a TorchAutoencoder, but this is a {type(autoencoder).__name__}'
        )
    return autoencoder


def _load(source: str | Path, device: str, dtype: str) -> Autoencoder:
    name, arguments = _split(str(source))
    path = Path(name)
    if name == "default":
        _accept(name, arguments, ())
        return load_compact(DEFAULT_WEIGHTS, "default", device, dtype)
    if path.is_dir():
        _accept(name, arguments, ("image_size",))
        return _load_folder(path, arguments, device, dtype)
    if path.suffix == ".safetensors":
        _accept(name, arguments, ())
        return load_compact(path, path.stem, device, dtype)
    if path.is_file() and path.suffix in CHECKPOINTS:
        raise InputError(f"{name} is a checkpoint; convert it first: lpkernel autoencoder convert {name} FOLDER")
    place, colon, function = name.rpartition(":")
    if colon and place and all(part.isidentifier() for part in function.split(".")):
        return _load_plugin(place, function, arguments, device, dtype)
    if path.is_file():
        raise InputError(f"{name} is not an autoencoder; expected {ACCEPTED}")
    what = "no such file or folder" if "/" in name else "no such autoencoder"
    raise InputError(f"{name}: {what}; expected {ACCEPTED}")


def _split(source: str) -> tuple[str, dict[str, str]]:
    """Name and arguments of a source."""
    name, mark, query = source.partition("?")
    if not mark or Path(source).exists():
        return source, {}
    arguments = {}
    for pair in query.split("&"):
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise InputError(f"{source}: {pair!r} after the ? is not key=value")
        arguments[key] = value
    return name, arguments


def _accept(name: str, arguments: dict[str, str], known: tuple[str, ...]) -> None:
    unknown = [key for key in arguments if key not in known]
    if unknown:
        takes = f"takes only {', '.join(known)}" if known else "takes no arguments"
        raise InputError(f"{name}: argument {unknown[0]} is not known; this source {takes}")


def _load_folder(folder: Path, arguments: dict[str, str], device: str, dtype: str) -> Autoencoder:
    class_name = read_config(folder).get("_class_name")
    if not isinstance(class_name, str) or class_name not in FOLDER_CLASSES:
        shown = short(class_name) if isinstance(class_name, str) else "nameless"
        raise InputError(f"{folder} is a {shown} model, expected one of {', '.join(FOLDER_CLASSES)}")
    return FOLDER_CLASSES[class_name](folder, device, dtype, **arguments)


def _load_plugin(place: str, function: str, arguments: dict[str, str], device: str, dtype: str) -> Autoencoder:
    source = f"{place}:{function}"
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except LpkernelError:
        raise
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(error.name + ".")):
            raise InputError(f"{source}: there is no module {error.name}; for a file, give its .py path") from error
        raise _failed(source, "importing it", error) from error
    except Exception as error:
        raise _failed(source, "importing it", error) from error
    call: Any = module
    for part in function.split("."):
        call = getattr(call, part, None)
    if not callable(call):
        raise InputError(f"{source}: {place} has no callable {function}")
    keywords = _keywords(source, call, arguments, device, dtype)
    try:
        autoencoder = call(**keywords)
    except LpkernelError:
        raise
    except Exception as error:
        raise _failed(source, "calling it", error) from error
    return _check_protocol(source, autoencoder)


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"{path}: no such plug-in file")
    name = f"lpkernel_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None  # a path that ends in .py always has one
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles of the plug-in look themselves up here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _keywords(
    source: str, call: Callable[..., Any], arguments: dict[str, str], device: str, dtype: str
) -> dict[str, str]:
    """`arguments`, plus device and dtype if `call` takes them."""
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):  # a callable without a signature, written in C
        return arguments
    parameters = signature.parameters.values()
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    ours = {"device": device, "dtype": dtype}
    keywords = {key: value for key, value in ours.items() if takes_any or key in signature.parameters} | arguments
    try:
        signature.bind(**keywords)
    except TypeError as error:
        raise InputError(f"{source}{signature}: {error}; give its arguments as {source}?key=value&key=value") from error
    return keywords


def _failed(source: str, doing: str, error: Exception) -> InputError:
    lines = str(error).split("\n")
    return InputError(f"{source}: {doing} failed with {type(error).__name__}: {lines[0]}")


def _check_protocol(source: str, autoencoder: Any) -> Autoencoder:
    def fail(attribute: str, expected: str) -> InputError:
        got = repr(getattr(autoencoder, attribute, "nothing"))[:60].split("\n")[0]
        return InputError(
            f"{source} returned a {type(autoencoder).__name__} whose {attribute} is {got}, expected {expected}; "
            "see docs/adding-an-autoencoder.md"
        )

    for attribute in ("name", "fingerprint"):
        if not isinstance(getattr(autoencoder, attribute, None), str):
            raise fail(attribute, "a string")
    for attribute in ("image_size", "grid"):
        value = getattr(autoencoder, attribute, None)
        if not isinstance(value, int) or value < 1:
            raise fail(attribute, "a positive integer")
    book = getattr(autoencoder, "codebook", "nothing")
    if book is not None and not (isinstance(book, np.ndarray) and book.ndim == 2 and book.dtype == np.float32):
        raise fail("codebook", "None or a (V, L) float32 NumPy array")
    for attribute in ("encode", "decode"):
        if not callable(getattr(autoencoder, attribute, None)):
            raise fail(attribute, "a method")
    checked: Autoencoder = autoencoder
    return checked
