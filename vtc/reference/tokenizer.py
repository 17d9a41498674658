"""The reference VLM's tokenizer: byte-level BPE over the questions' own words.

Every word of the questions and answers is one token and every decimal digit is one; anything else falls
back to bytes, so that no text is unknown.
"""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from vtc.reference.questions import lexicon

BOS, EOS, PAD, IMAGE, USER, ASSISTANT = "<s>", "</s>", "<pad>", "<image>", "<|user|>", "<|assistant|>"

#: ``<s><|user|><image>QUESTION<|assistant|>ANSWER</s>``; later turns have neither ``<s>`` nor a separator.
CHAT_TEMPLATE = """{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}{{- '<|assistant|>' -}}{%- else -%}{{- '<|user|>' -}}{%- endif -%}
{%- if message['content'] is string -%}
{{- message['content'] | trim -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<image>' -}}
{%- elif part['type'] == 'text' -%}{{- part['text'] | trim -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def token_ids(tokenizer: PreTrainedTokenizerFast, *tokens: str) -> list[int]:
    """Ids of special tokens."""
    return [int(tokenizer.get_vocab()[token]) for token in tokens]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train the tokenizer (under a second; the result does not depend on anything but the lexicon)."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    core.decoder = decoders.ByteLevel()
    words = {word for line in lexicon() for word in line.replace("?", "").split()}
    # A word is met at the start of a question or answer and, with a space before it, everywhere else.
    corpus = sorted(words) + [f" {word}" for word in sorted(words)]
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        special_tokens=[BOS, EOS, PAD, IMAGE, USER, ASSISTANT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[IMAGE, USER, ASSISTANT],
        image_token=IMAGE,
        model_max_length=2048,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
