"""Prompts to token ids, with each image's placeholder expanded, and token ids back to text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from vtc.bundle.facts import ServedImage
from vtc.bundle.manifest import Manifest
from vtc.errors import BundleError, InputError, one_line
from vtc.files import TOKENIZER_BYTES, check_file, read_text
from vtc.inputs.prompts import expand, render_chat, without_marks, writes_start
from vtc.machine import machine_fault

IntArray = NDArray[np.int64]

TEMPLATE = "chat_template.jinja"


class Text:
    """A bundle's tokenizer and chat template.

    Parameters
    ----------
    manifest : Manifest

    Raises
    ------
    BundleError
        If the tokenizer cannot be loaded.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.facts = manifest.generation
        try:
            check_file(manifest.file("tokenizer.json"), TOKENIZER_BYTES)
            self.tokenizer = Tokenizer.from_file(str(manifest.file("tokenizer.json")))
        except BundleError:
            raise
        except Exception as error:  # tokenizers raises bare Exceptions
            raise machine_fault(error, manifest.root / "tokenizer.json") or BundleError(
                f"{manifest.root}: tokenizer.json cannot be loaded ({error}); export it again"
            ) from error
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        config = manifest.json("tokenizer_config.json")
        self.special_tokens = {
            name: token
            for name, written in config.items()
            if name.endswith("_token")
            and isinstance(token := written.get("content") if isinstance(written, dict) else written, str)
        }
        self.chat_template = _chat_template(manifest, config)

    def chat(self, question: str, inputs: int, served: ServedImage) -> str:
        """A question about so many images or clips in the chat template.

        Raises
        ------
        BundleError
            If the bundle has none, or it cannot be rendered.
        """
        question = without_marks(question, (served.placeholder, served.token))
        if self.chat_template is None:
            raise BundleError(
                "bundle holds no chat template, so nothing says how a question is put to the model; export it again, "
                "or give a whole prompt (--raw-prompt)"
            )
        return render_chat(self.chat_template, question, inputs, self.special_tokens, served.kind)

    def encode(self, prompts: Sequence[str], inputs: Sequence[int], served: ServedImage) -> list[list[int]]:
        """Token ids of prompts.

        Parameters
        ----------
        prompts : sequence of str
            Whole prompts with one placeholder for each image or clip.
        inputs : sequence of int
            Number of images or clips that belong to each prompt.
        served : ServedImage
            What they are.

        Returns
        -------
        list of list of int
            Each visual token taken `keep` times.

        Raises
        ------
        InputError
            If a prompt's placeholders do not match its images.
        BundleError
            If the tokenizer makes something else of them than visual tokens.
        """
        rows = []
        for prompt, count in zip(prompts, inputs, strict=True):
            frame = served.prompt_frame
            expanded = expand(prompt, served.placeholder, count, served.prompt_parts, served.token, frame)
            own_start = writes_start(prompt, frame, self.special_tokens.get("bos_token"))
            try:
                ids = self.tokenizer.encode(expanded, add_special_tokens=not own_start).ids
            except Exception as error:  # tokenizers raises bare Exceptions
                raise machine_fault(error) or BundleError(
                    f"tokenizer.json cannot encode a prompt ({one_line(error)}); export the bundle again"
                ) from error
            if ids.count(served.token_id) != count * served.spans:
                if expanded.count(served.token) != count * served.spans:
                    raise InputError(f"prompt holds {served.token}, which stands for visual tokens; take it out")
                raise BundleError(
                    f"tokenizer.json does not make {served.token} the token {served.token_id}, as the manifest has it; "
                    "export the bundle again"
                )
            rows.append(
                [token for token in ids for _ in range(served.keep_per_span if token == served.token_id else 1)]
            )
        return rows

    def batch(self, rows: Sequence[Sequence[int]]) -> tuple[IntArray, IntArray]:
        """Token ids and attention mask (B, S) of rows, padded on the left."""
        longest = max(map(len, rows))
        input_ids = np.full((len(rows), longest), self.facts.pad_token_id, dtype=np.int64)
        mask = np.zeros((len(rows), longest), dtype=np.int64)
        for number, row in enumerate(rows):
            input_ids[number, longest - len(row) :] = row
            mask[number, longest - len(row) :] = 1
        return input_ids, mask

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens and surrounding blanks."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True)).strip()

    def stream(self) -> TextStream:
        """Turns token ids into text one by one."""
        return TextStream(self)


class TextStream:
    """Text of a growing answer; what it yields, joined, is what :meth:`Text.decode` gives."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._given = ""
        self._blank = ""

    def step(self, token_id: int) -> str:
        """Text that one more token adds; empty while a character is incomplete."""
        self._ids.append(token_id)
        piece = self._decoder.step(self._text.tokenizer, token_id) or ""
        piece = self._blank + piece if self._given else piece.lstrip()
        # Blanks wait until something follows: the whole text ends without them.
        new = piece.rstrip()
        self._blank = piece[len(new) :]
        self._given += new
        return new

    def end(self) -> str:
        """What is left after the last token."""
        whole = self._text.decode(self._ids)
        return whole.removeprefix(self._given) if whole.startswith(self._given) else ""


def _chat_template(manifest: Manifest, tokenizer_config: dict[str, Any]) -> str | None:
    if TEMPLATE in manifest.files:
        try:
            return read_text(manifest.file(TEMPLATE))
        except (OSError, ValueError) as error:
            raise machine_fault(error) or BundleError(
                f"{manifest.root}: {TEMPLATE} cannot be read ({error}); export it again"
            ) from None
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[-1].get("template") if named else None
    return template if isinstance(template, str) else None
