"""Where engines can be built for: TensorRT releases, the devices under them, and what each cannot do.

A table of facts, each with the document that says so; `docs/targets.md` shows it. What no document could be found for
stands under :attr:`~exporters.target.Target.unverified`, and there the cautious reading is used. Needs neither onnx nor
TensorRT.
"""

from __future__ import annotations

import sys

from exporters.target import Operators, Source, Target
from vtc.errors import InputError

_DOCS = "https://docs.nvidia.com/deeplearning"
_PARSER = "https://github.com/onnx/onnx-tensorrt/blob/main/docs"
_GPUS = Source("SM of each GPU", "https://developer.nvidia.com/cuda-gpus")
_OPERATORS = Source(
    "operators and their limits, as of TensorRT 10.15: TopK, CumSum, Scatter, constant axes, opset 24",
    f"{_PARSER}/operators.md",
)
_CHANGES = Source(
    "which release added which operator; INT4 since 10.0, and ONNX 1.17 only with 10.6", f"{_PARSER}/Changelog.md"
)
_FP8 = Source(
    "FP8 from SM 8.9, FP4 from SM 10.0", f"{_DOCS}/tensorrt-rtx/latest/inference-library/work-quantized-types.html"
)
_BF16 = Source("BF16 from SM 8.0", "https://nvidia.github.io/TransformerEngine/support_matrix.html")
_BLACKWELL = Source(
    "Blackwell GPUs and FP4 from TensorRT 10.8",
    f"{_DOCS}/tensorrt/latest/getting-started/release-notes-10/10.8.0.html",
)
_OPSETS = Source(
    "opset ceilings by release: 20 up to 10.8, 24 from 10.13 (third-party notes)",
    "https://kvynlim.github.io/industry-research/20-av-platform/compute/tensorrt-deployment-guide",
)
_NO_JETSON_11 = Source(
    "TensorRT 11 comes to JetPack 7.2.2 with 11.4.1, and never to JetPack 6",
    f"{_DOCS}/tensorrt/11.4.1/api/migration/tensorrt-10x-to-11x-jetson.html",
)

# fmt: off
_NEVER = frozenset((
    "AffineGrid", "Bernoulli", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "CenterCropPad",
    "Col2Im", "Compress", "ConcatFromSequence", "ConvInteger", "Det", "DynamicQuantizeLinear", "ImageDecoder",
    "MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss",
    "Optional", "OptionalGetElement", "OptionalHasElement", "QLinearConv", "QLinearMatMul", "RegexFullMatch",
    "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength",
    "SequenceMap", "SoftmaxCrossEntropyLoss", "SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit",
    "TfIdfVectorizer", "Unique",
))
_NEWER_THAN_10_3 = frozenset((
    "Attention", "BlackmanWindow", "DFT", "HammingWindow", "HannWindow", "RMSNormalization", "RotaryEmbedding",
    "STFT", "Swish", "TensorScatter",
))
# fmt: on

_REDUCES = frozenset({"ScatterElements"})
_AS_10_3 = Operators(_NEVER | _NEWER_THAN_10_3, einsum_ellipsis=False, scatter_reductions=_REDUCES)
_AS_10_13 = Operators(_NEVER | _NEWER_THAN_10_3, scatter_reductions=_REDUCES)
_AS_10_15 = Operators(_NEVER | {"DFT", "Swish"}, scatter_reductions=_REDUCES)
_AS_11_0 = Operators(_NEVER | {"DFT"}, scatter_reductions=_REDUCES)
_AS_RTX = Operators(_NEVER | {"DFT", "NonZero"})

_SINCE = {"bf16": "8.0", "int4": "8.0", "fp8": "8.9", "nvfp4": "10.0"}
_HALVES = ("fp32", "fp16", "bf16", "int8", "int4")

_K = "K of just 3840: operators.md says less than that, and TensorRT for RTX 1.7.1 builds it"
_UNVERIFIED_10_3 = (
    _K,
    "operators.md of 10.3 itself was not at hand: limits are those of 10.15, less what was added in between",
    "Einsum with an ellipsis: excluded by operators.md of 8.5, not mentioned by those of 9.2 and 10.15",
    "opset 20 as the ceiling: no document of NVIDIA's at hand says so",
    "opset 21 for 4-bit weights: follows from INT4 since 10.0 and ONNX 1.16, which has opset 21; not tried",
    "INT4 on SM 7.5 and 8.7: no document lists it by GPU",
)

TARGETS: tuple[Target, ...] = (
    Target(
        name="rtx",
        summary="TensorRT for RTX on GeForce RTX and other GPUs from Turing on; engines are built without a GPU",
        library="tensorrt_rtx",
        release=(1, 1),
        cuda="12.9 or 13",
        capabilities=("8.6", "8.9", "12.0"),
        on_request=("7.5", "8.0", "12.1"),
        max_opset=22,
        precisions=(*_HALVES, "fp8", "nvfp4"),
        since={**_SINCE, "int8": "8.0"},
        operators=_AS_RTX,
        strongly_typed_only=True,
        ahead_of_time=True,
        sources=(
            Source(
                "SM, and precisions of each; engines run on SM 8.6, 8.9 and 12.0 alike unless built for one",
                f"{_DOCS}/tensorrt-rtx/latest/getting-started/support-matrix.html",
            ),
            _OPERATORS,
            _FP8,
            Source(
                "tried with TensorRT for RTX 1.7.1: K of 3840 builds and 3841 does not; DFT, NonZero and Scatter with "
                "a reduction are refused by the parser; INT4 weights and BF16 build from SM 8.0 on, FP8 from SM 8.9 "
                "on; Attention, RMSNormalization, RotaryEmbedding and Einsum with an ellipsis build",
                "tests/exporters/test_targets.py",
            ),
        ),
        unverified=(
            "the opset ceiling: no document gives one; 1.7.1 parses operator sets above 22, the highest vtc writes",
            "CumSum of integers: 1.7.1 builds it, but operators.md lists floats only, and it was never executed",
            "SM 8.0: in the library's list, not in the support matrix",
        ),
        install="pip install 'vtc[rtx]'",
    ),
    Target(
        name="x86-tensorrt-10",
        summary="TensorRT 10 (10.3 or newer) on an x86 machine with an NVIDIA GPU",
        library="tensorrt",
        release=(10, 3),
        cuda="12 or 13",
        capabilities=("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"),
        max_opset=20,
        int4_opset=21,
        precisions=(*_HALVES, "fp8"),
        since=_SINCE,
        operators=_AS_10_3,
        sources=(_OPERATORS, _CHANGES, _OPSETS, _FP8, _BF16, _BLACKWELL, _GPUS),
        unverified=_UNVERIFIED_10_3,
        install="pip install 'tensorrt>=10.3,<11' (from NVIDIA's package index), on the machine with the GPU",
    ),
    Target(
        name="x86-tensorrt-11",
        summary="TensorRT 11 on an x86 machine with an NVIDIA GPU; types come from the graph alone",
        library="tensorrt",
        release=(11, 0),
        cuda="13",
        capabilities=("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"),
        max_opset=24,
        precisions=(*_HALVES, "fp8", "nvfp4"),
        since=_SINCE,
        operators=_AS_11_0,
        strongly_typed_only=True,
        sources=(
            Source(
                "weak typing is gone",
                f"{_DOCS}/tensorrt/11.0.0/getting-started/release-notes-11/11.0.0.html",
            ),
            Source(
                "DFT from 11.2 on",
                f"{_DOCS}/tensorrt/latest/getting-started/release-notes-11/11.2.1.html",
            ),
            Source(
                "opset 25 of the newest 11.x, 24 of 11.2's operators.md (read in a copy); the lower one is used",
                f"{_DOCS}/tensorrt/latest/reference/onnx-opset-guide.html",
            ),
            _OPERATORS,
            _FP8,
            _BF16,
            _GPUS,
        ),
        unverified=(
            _K,
            "SM 7.5: no support matrix of 11 was at hand",
            "INT4 on SM 7.5: no document lists it by GPU",
        ),
        install="pip install 'tensorrt>=11' (from NVIDIA's package index), on the machine with the GPU",
    ),
    Target(
        name="jetson-orin-jp6",
        summary="Jetson Orin with JetPack 6",
        library="tensorrt",
        release=(10, 3),
        cuda="12.6",
        machine="aarch64",
        jetson=True,
        capabilities=("8.7",),
        max_opset=20,
        int4_opset=21,
        precisions=_HALVES,
        since=_SINCE,
        operators=_AS_10_3,
        sources=(
            Source(
                "CUDA 12.6 and TensorRT 10.3 in JetPack 6.1",
                "https://docs.pytorch.org/TensorRT/v2.6.1/_sources/getting_started/jetpack.rst.txt",
            ),
            _OPERATORS,
            _CHANGES,
            _OPSETS,
            _FP8,
            _BF16,
            _NO_JETSON_11,
            _GPUS,
        ),
        unverified=_UNVERIFIED_10_3,
        install="on the Jetson: sudo apt install nvidia-jetpack",
    ),
    Target(
        name="jetson-orin-jp7",
        summary="Jetson Orin with JetPack 7.2",
        library="tensorrt",
        release=(10, 16),
        cuda="13.2",
        machine="aarch64",
        jetson=True,
        capabilities=("8.7",),
        max_opset=24,
        precisions=_HALVES,
        since=_SINCE,
        operators=_AS_10_15,
        sources=(
            Source(
                "CUDA 13.2.1 and TensorRT 10.16.2 on an Orin with JetPack 7.2.0 (a user's report)",
                "https://github.com/Shattered217/Jetson-Orin-Wheels",
            ),
            _OPERATORS,
            _FP8,
            _BF16,
            _NO_JETSON_11,
            _GPUS,
        ),
        unverified=(
            _K,
            "operators.md of 10.16 itself was not at hand: limits are those of 10.15",
            "INT4 on SM 8.7: no document lists it by GPU",
        ),
        install="on the Jetson: sudo apt install nvidia-jetpack",
    ),
    Target(
        name="jetson-thor-jp7",
        summary="Jetson Thor (T4000, T5000) with JetPack 7",
        library="tensorrt",
        release=(10, 13),
        cuda="13.0",
        machine="aarch64",
        jetson=True,
        capabilities=("11.0",),
        max_opset=24,
        precisions=(*_HALVES, "fp8", "nvfp4"),
        since=_SINCE,
        operators=_AS_10_13,
        sources=(
            Source(
                "CUDA 13.0 in JetPack 7.1",
                "https://developer.nvidia.com/embedded/jetpack/downloads/archive-7.1.md",
            ),
            _OPERATORS,
            _CHANGES,
            _OPSETS,
            _FP8,
            _BF16,
            _BLACKWELL,
            _NO_JETSON_11,
            _GPUS,
        ),
        unverified=(
            _K,
            "TensorRT 10.13 as the oldest on JetPack 7, and its opset 24: no document of NVIDIA's at hand says so",
            "whether 10.13 has the operators that came between 10.3 and 10.15; taken as absent",
            "INT4 on SM 11.0: no document lists it by GPU",
        ),
        install="on the Jetson: sudo apt install nvidia-jetpack",
    ),
)

PORTABLE = Operators(
    absent=frozenset().union(*(one.operators.absent for one in TARGETS)),
    max_topk_k=sys.maxsize,
    cumsum_types=frozenset.intersection(*(one.operators.cumsum_types for one in TARGETS)),
    einsum_ellipsis=all(one.operators.einsum_ellipsis for one in TARGETS),
    scatter_reductions=frozenset.intersection(*(one.operators.scatter_reductions for one in TARGETS)),
)
"""What an export that names no target is held to: what all of them take, but for the size of K. Selectors that sort all
tokens exceed that with large images, and ONNX Runtime does not limit it.
"""


def target(name: str) -> Target:
    """The target of a name.

    Raises
    ------
    InputError
        If there is none.
    """
    for one in TARGETS:
        if one.name == name:
            return one
    raise InputError(f"target '{name}' is not known; targets: {', '.join(one.name for one in TARGETS)}")
