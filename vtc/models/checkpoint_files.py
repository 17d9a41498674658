"""The files of a checkpoint: which of them are loaded, and that the weights lie in its own directory."""

from __future__ import annotations

import hashlib
import math
import shlex
from pathlib import Path

from safetensors import SafetensorError, safe_open

from vtc.artifact import sha256
from vtc.errors import ModelError, one_line
from vtc.files import open_regular, read_json
from vtc.machine import machine_fault

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIGURATIONS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
)
"""JSON that transformers reads beside weights and vocabulary."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt")
TEMPLATES = ("chat_template.jinja", "additional_chat_templates/*.jinja")
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
INDEX_BYTES = 64 * 2**20
TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Types that a model can run in, as safetensors and PyTorch call them."""
LFS = b"version https://git-lfs"


def weight_files(path: Path) -> list[Path]:
    """The files that a checkpoint's weights are loaded from, as transformers chooses them.

    A file may be a link, as in the stores of model hubs; its name may not lead out of the directory.

    Raises
    ------
    ModelError
        If there are none, an index cannot be read, or it names files that are missing or elsewhere.
    """
    if (path / WEIGHTS).exists() or (path / WEIGHTS).is_symlink():
        if not (path / WEIGHTS).is_file():
            raise ModelError(f"{path / WEIGHTS}: is not a regular file, nor a link to one; fetch the weights again")
        return [path / WEIGHTS]
    index = path / INDEX
    if not index.exists():
        raise ModelError(_without_weights(path))
    try:
        names = read_json(index, INDEX_BYTES)["weight_map"].values()
        shards = sorted(set(names))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        words = error if isinstance(error, OSError | ValueError) else "has no weight_map of names to files"
        raise ModelError(f"{index}: cannot be used ({words}); fetch it again") from None
    for name in shards:
        if not isinstance(name, str) or not name.endswith(".safetensors") or set(name) & set("/\\:\0"):
            raise ModelError(f"{index}: names {str(name)[:80]!r}, which is no .safetensors file of this directory")
    missing = [name for name in shards if not (path / name).is_file()]
    if missing or not shards:
        first = f"{missing[0]} is missing" if missing else "names no files"
        more = f", and so are {len(missing) - 1} more of {len(shards)} files" if len(missing) > 1 else ""
        raise ModelError(f"{path}: weights are incomplete: {first}{more}; fetch them again (hf download MODEL)")
    return [path / name for name in shards]


def stored_weights(path: Path) -> dict[str, int]:
    """How many numbers of each type a checkpoint stores, by the names of PyTorch's types; the weights are not read.

    Raises
    ------
    ModelError
        If a file is missing or damaged.
    """
    found: dict[str, int] = {}
    for file in weight_files(path):
        try:
            with safe_open(file, framework="numpy") as stored:
                for name in stored.keys():  # noqa: SIM118 (not a dict)
                    part = stored.get_slice(name)
                    kind = TYPES.get(part.get_dtype(), part.get_dtype())
                    found[kind] = found.get(kind, 0) + math.prod(part.get_shape())
        except (OSError, ValueError, SafetensorError) as error:
            raise machine_fault(error, file) or ModelError(
                f"{file}: weights cannot be loaded ({one_line(error)}); fetch them again"
            ) from error
    return found


def stored_dtype(path: Path) -> str:
    """The type that most of a checkpoint's weights are stored in: ``float32``, ``bfloat16`` or ``float16``."""
    found = {kind: count for kind, count in stored_weights(path).items() if kind in TYPES.values()}
    return max(found, key=lambda kind: found[kind], default="float32")


def has_model(path: Path) -> bool:
    """Whether there are weights of a model, and not of an adapter alone."""
    return (path / INDEX).exists() or any(not file.name.startswith("adapter") for file in path.glob("*.safetensors"))


def adapter_fault(path: Path) -> str | None:
    """What to tell of a LoRA adapter, which is no part of the weights; None where there is none."""
    if not any((path / name).exists() for name in ADAPTERS):
        return None
    try:
        base = read_json(path / ADAPTERS[0]).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    own = has_model(path)
    if own and not any((path / name).exists() for name in ADAPTERS[1:]):
        return (
            f"{path}: holds {ADAPTERS[0]} and no adapter, so that its weights may or may not be merged; remove that "
            "file if they are, else fetch the adapter and merge it"
        )
    held = "an adapter (LoRA) beside its weights" if own else "an adapter (LoRA) and no model"
    name = "." if own else str(base or "BASE")[:200]
    adapter, apart = ("adapter", "mkdir adapter && mv adapter_* adapter && ") if own else (".", "")
    merge = (
        f"from peft import PeftModel as P; {_copied(name, '../merged')}"
        f"P.from_pretrained(m, '{adapter}').merge_and_unload().save_pretrained('../merged')"
    )
    do = f"pip install peft && cd {shlex.quote(str(path))} && {apart}{python_command(merge)}"
    return f"{path}: holds {held}; merge it first: {do}"


def _copied(model: str, out: str) -> str:
    """Python that loads a model, a hub's or a directory's, and copies all but its weights to `out`.

    Its processor could save itself, but needs more packages than vtc does.
    """
    here = Path(model).is_dir()
    place = repr(model if model == "." else str(Path(model).resolve())) if here else f"s({model!r})"
    fetch = "" if here else "from huggingface_hub import snapshot_download as s; "
    return (
        f"{fetch}from shutil import copytree, ignore_patterns as i; "
        f"from transformers import AutoModelForImageTextToText as M; b = {place}; "
        "m = M.from_pretrained(b, dtype='auto'); "
        f"copytree(b, {out!r}, ignore=i('.*', 'adapter*', '*.bin', '*.pt*', '*.safetensors', '*.index.json')); "
    )


def python_command(program: str) -> str:
    """A command that runs it."""
    return f"python -c {shlex.quote(program)}" if set(program) & set('"$`\\!') else f'python -c "{program}"'


def holds_weights(path: Path) -> bool:
    """Whether there is anything of weights, be it incomplete or of another form; else it is configuration alone."""
    return any(
        file.suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf") or file.name == INDEX for file in path.iterdir()
    )


def _without_weights(path: Path) -> str:
    if any(path.glob("*.safetensors")):
        shards = sorted(file.name for file in path.glob("*.safetensors"))
        if any("-of-" in name for name in shards):
            return f"{path}: holds {shards[0]} without {INDEX}; fetch that file too"
        return f"{path}: holds {shards[0]}, and neither {WEIGHTS} nor {INDEX}; give the weights their usual name"
    if any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
        convert = python_command(f"{_copied('.', '../converted')}m.save_pretrained('../converted')")
        held = "holds pickled weights (.bin) alone, which are not read"
        return f"{path}: {held}; convert them where you trust them: cd {shlex.quote(str(path))} && {convert}"
    if any(path.glob("*.gguf")):
        return f"{path}: holds GGUF weights, which are not read; take the original ones in safetensors"
    return f"{path}: holds no weights ({WEIGHTS}); fetch them (hf download MODEL)"


def is_lfs_pointer(file: Path) -> bool:
    """Whether a file is the pointer that Git leaves where its large contents were not fetched."""
    with open_regular(file) as stream:
        return stream.read(len(LFS)) == LFS


def loaded_files(path: Path) -> list[Path]:
    """Every file of a checkpoint that something is loaded from, in order of their names."""
    named = [path / name for name in (*CONFIGURATIONS, *TOKENIZERS) if (path / name).is_file()]
    templates = [file for pattern in TEMPLATES for file in path.glob(pattern) if file.is_file()]
    index = [] if (path / WEIGHTS).exists() else [path / INDEX]
    return sorted([*named, *templates, *index, *weight_files(path)])


def model_digest(path: Path) -> str:
    """SHA-256 over the names and contents of every file that a checkpoint is loaded from.

    Raises
    ------
    ModelError
        If weights are missing.
    """
    digest = hashlib.sha256()
    for file in loaded_files(path):
        digest.update(file.relative_to(path).as_posix().encode())
        digest.update(bytes.fromhex(sha256(file)))
    return digest.hexdigest()
