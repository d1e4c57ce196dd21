"""Reads and writes models: checkpoint folders (config.json + safetensors) and the trainer's own
state files."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from photon_model import Photon, PhotonConfig
from transformer_model import Transformer, TransformerConfig

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def build_model(config: dict) -> nn.Module:
    """The model that a config.json describes, randomly initialised."""
    if config["model_type"] == "transformer":
        return Transformer(TransformerConfig.from_dict(config))
    return Photon(PhotonConfig.from_dict(config))


def save_checkpoint(
    model: nn.Module, folder: Path, dtype: str = "bfloat16", max_shard_bytes: int = 0
) -> None:
    """Writes config.json and model.safetensors, or shards with an index when `max_shard_bytes` is
    exceeded."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**model.config.to_dict(), "dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {
        k: v.detach().cpu().to(DTYPES[dtype]).contiguous() for k, v in model.state_dict().items()
    }
    total = sum(t.nbytes for t in tensors.values())
    if not max_shard_bytes or total <= max_shard_bytes:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    shards: list[dict[str, torch.Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        if used and used + tensor.nbytes > max_shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += tensor.nbytes
    weight_map = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update({name: file for name in shard})
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def load_checkpoint(path: Path, dtype=torch.float32) -> nn.Module:
    """Loads a checkpoint folder or a trainer state file; parameters are converted to `dtype`."""
    if path.is_file():
        state = torch.load(path, map_location="cpu", weights_only=True)
        model, tensors = build_model(state["config"]), state["model"]
    else:
        model = build_model(json.loads((path / "config.json").read_text()))
        index = path / "model.safetensors.index.json"
        files = ["model.safetensors"]
        if index.exists():
            files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        tensors = {}
        for file in files:
            tensors.update(load_file(path / file))
    model.load_state_dict(tensors)
    return model.to(dtype).eval()
