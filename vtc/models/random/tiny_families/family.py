"""What one family's checkpoint consists of, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Settings = dict[str, Any]


@dataclass(frozen=True)
class Chat:
    """What a family's chat template writes around messages, texts and images.

    Attributes
    ----------
    user, assistant : str
        What opens a turn.
    end_user, end_assistant : str
        What closes a turn.
    image, video : str
        What stands for one image or video.
    head : str
        A Jinja expression or text before the first turn.
    visuals_first : bool
        Whether a turn's images and videos come before all its text, in whatever order they were given.
    """

    user: str
    assistant: str
    end_user: str
    end_assistant: str
    image: str
    video: str = ""
    head: str = "{{- bos_token -}}"
    visuals_first: bool = False

    def template(self) -> str:
        """The Jinja template."""
        image = "{%- if part['type'] == 'image' -%}" + _text(self.image)
        video = "{%- elif part['type'] == 'video' -%}" + _text(self.video) if self.video else ""
        words = "if part['type'] == 'text' -%}{{- part['text'] | trim -}}"
        passes = [image + video, "{%- " + words] if self.visuals_first else [image + video + "{%- el" + words]
        parts = [f"{{%- for part in message['content'] -%}}{cases}{{%- endif -%}}{{%- endfor -%}}" for cases in passes]
        return "\n".join(
            [
                self.head,
                "{%- for message in messages -%}",
                _by_role(self.user, self.assistant),
                "{%- if message['content'] is string -%}{{- message['content'] | trim -}}",
                "{%- else -%}",
                *parts,
                "{%- endif -%}",
                _by_role(self.end_user, self.end_assistant),
                "{%- endfor -%}",
                f"{{%- if add_generation_prompt -%}}{_text(self.assistant)}{{%- endif -%}}",
                "",
            ]
        )


def _text(text: str) -> str:
    return f"{{{{- {text!r} -}}}}"


def _by_role(user: str, assistant: str) -> str:
    return f"{{%- if message['role'] == 'assistant' -%}}{_text(assistant)}{{%- else -%}}{_text(user)}{{%- endif -%}}"


@dataclass(frozen=True)
class Family:
    """One family's checkpoint.

    Attributes
    ----------
    chat : Chat
    names : dict
        Special tokens that the tokenizer knows by a name of their own, such as ``image_token``.
    tokens : list of str
        Other special tokens.
    ids : dict
        Fields of the configuration that hold a token's id: field to token.
    vision, text, model : dict
        Fields of the vision tower's, the decoder's and the whole model's configuration.
    image, processor : dict
        Contents of ``preprocessor_config.json`` and ``processor_config.json``.
    video : dict
        Content of ``video_preprocessor_config.json``; nothing where the family has none.
    eos : str
        What ends an answer.
    """

    chat: Chat
    names: dict[str, str]
    ids: dict[str, str]
    vision: Settings
    text: Settings
    image: Settings
    processor: Settings
    model: Settings = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list)
    video: Settings = field(default_factory=dict)
    eos: str = "</s>"
