"""MiniALBERT: BERT's layer, applied recursively. The model and its weights on disk.

Paper: MiniALBERT, Model Distillation via Parameter-Efficient Recursive Transformers (arXiv 2210.06425).
One class is both teacher and student: a BERT is a MiniALBERT that shares nothing.

    model = load("assets/teacher")                    # a BERT, a student of ours or of the authors'
    hidden, attention = model(ids, maps=[3])          # every hidden state, the maps of layer 3
    logits = model.predict(hidden[-1][masked])        # (M, V), for just the places asked about

Dimensions, here and in the other files:
    B batch     T tokens        C hidden width    E embedding width     H heads    D = C / H
    F feed-forward width        A adapter width   V vocabulary          M masked places
    R recursions: layers applied, a layer counted as often as it is used
"""
import json
import math
import os
import pickle
import re
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    """The shape of a model, in Hugging Face's ALBERT names. ValueError names a field that is wrong."""
    vocab_size: int = 30522
    embedding_size: int = 128                # E; smaller than C: a factorised embedding
    hidden_size: int = 768                   # C
    num_hidden_layers: int = 6               # R, how many times a layer is applied
    num_hidden_groups: int = 1               # distinct layers: 1 = recursive, R = nothing shared
    num_attention_heads: int = 12            # H
    intermediate_size: int = 3072            # F
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    adapter_size: int = 0                    # A, 0 = no adapters; the paper: C / 16
    tie_decoder: bool = True                 # False: the authors' own (V, C) output matrix

    def __post_init__(self):
        for name, value in asdict(self).items():
            kind, least = type(getattr(Config, name)), 0 if name == "adapter_size" else 1
            most = 1024 if name == "num_hidden_layers" else 2**31
            if kind is int and (type(value) is not int or not least <= value <= most):
                raise ValueError(f"{name} is {value!r}, not a whole number from {least} to {most}")
            if kind is float and (type(value) not in (int, float) or not 0 <= value < 1):
                raise ValueError(f"{name} is {value!r}, not a number from 0 up to 1")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} cannot be split into "
                             f"{self.num_attention_heads} attention heads")
        if self.num_hidden_groups > self.num_hidden_layers:
            raise ValueError(f"num_hidden_groups {self.num_hidden_groups} is more than "
                             f"num_hidden_layers {self.num_hidden_layers}")

    @property
    def is_bert(self):
        return (self.num_hidden_groups == self.num_hidden_layers and not self.adapter_size
                and self.embedding_size == self.hidden_size)

    @classmethod
    def read(cls, path):
        """The Config in a config.json: BERT's, the MiniALBERT authors' or ours."""
        found = read_json(path)
        try:
            for name, only in (("hidden_act", "gelu"), ("inner_group_num", 1)):
                if found.get(name, only) != only:
                    raise ValueError(f"{name} is {found[name]!r}, only {only!r} is built here")
            if found.get("model_type", "bert") == "bert":        # BERT's config lacks these two
                found |= {"embedding_size": found["hidden_size"],
                          "num_hidden_groups": found["num_hidden_layers"]}
            if found.get("use_adapter"):                         # the authors' way to say A
                found["adapter_size"] = found["hidden_size"] // found["reduction_factor"]
            needed = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                      "intermediate_size")
            return cls(**{name: found[name] for name in asdict(cls()) if name in found or name in needed})
        except KeyError as error:
            raise ValueError(f"{path}: {error} is missing: is this a BERT or a MiniALBERT?") from error
        except (ValueError, TypeError, ZeroDivisionError) as error:
            raise ValueError(f"{path}: {error}") from error


# ---- The model, leaf to root --------------------------------------------------------------------


class Embeddings(nn.Module):
    """LayerNorm(word + position + segment) at width E, then a linear E -> C when they differ."""

    def __init__(self, config):
        super().__init__()
        E, C = config.embedding_size, config.hidden_size
        self.word = nn.Embedding(config.vocab_size, E)
        self.position = nn.Embedding(config.max_position_embeddings, E)
        self.segment = nn.Embedding(config.type_vocab_size, E)
        self.norm = nn.LayerNorm(E, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.project = nn.Linear(E, C) if E != C else None

    def forward(self, ids, segments=None):
        T, most = ids.shape[1], self.position.num_embeddings
        if T > most:
            raise ValueError(f"a sequence of {T} tokens, but the model has {most} positions")
        segment = self.segment.weight[0] if segments is None else self.segment(segments)
        x = self.dropout(self.norm(self.word(ids) + self.position.weight[:T] + segment))  # (B, T, E)
        return x if self.project is None else self.project(x)                             # (B, T, C)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017), without the residual and its norm."""

    def __init__(self, config):
        super().__init__()
        C = config.hidden_size
        self.heads, self.p = config.num_attention_heads, config.attention_probs_dropout_prob
        self.query, self.key, self.value, self.output = (nn.Linear(C, C) for _ in range(4))

    def forward(self, x, mask=None, want_map=False):
        """x (B, T, C), mask (B, 1, 1, T) -> (B, T, C) and, if wanted, log-probabilities (B, H, T, T)."""
        B, T, C = x.shape
        q, k, v = (linear(x).view(B, T, self.heads, -1).transpose(1, 2)      # (B, H, T, D)
                   for linear in (self.query, self.key, self.value))
        p, log_p = self.p if self.training else 0.0, None
        if want_map:
            scores = (q / math.sqrt(C // self.heads)) @ k.transpose(2, 3)    # (B, H, T, T)
            if mask is not None:
                # finite, so that 0 * log(0) is 0 in a KL; exp(-1e9) is exactly 0 all the same
                scores = scores.float().masked_fill(~mask, -1e9)
            log_p = scores.log_softmax(-1)               # before dropout: a map is not a coin toss
            y = F.dropout(log_p.exp(), p, self.training) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        return self.output(y.transpose(1, 2).reshape(B, T, C)), log_p


class Adapter(nn.Module):
    """LayerNorm(x + up(gelu(down(x)))), what a recursion has of its own (Houlsby et al. 2019)."""

    def __init__(self, config):
        super().__init__()
        self.down = nn.Linear(config.hidden_size, config.adapter_size)
        self.up = nn.Linear(config.adapter_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x):
        return self.norm(x + self.up(F.gelu(self.down(x))))


class Layer(nn.Module):
    """BERT's post-norm layer: attention, add, norm, feed-forward, add, norm."""

    def __init__(self, config):
        super().__init__()
        C = config.hidden_size
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(C, config.layer_norm_eps)
        self.intermediate = nn.Linear(C, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, C)
        self.norm = nn.LayerNorm(C, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x, mask=None, want_map=False, adapters=()):
        """adapters: none, or the recursion's two, placed as in the authors' code."""
        if adapters:
            x = adapters[0](x)                           # before attention
        y, log_p = self.attention(x, mask, want_map)
        x = self.attention_norm(x + self.dropout(y))
        if adapters:
            x = adapters[1](x)                           # before the feed-forward
        y = self.output(F.gelu(self.intermediate(x)))    # (B, T, F) on the way
        return self.norm(x + self.dropout(y)), log_p


class Head(nn.Module):
    """BERT's masked-language-model head; a tied one borrows its decoder from the embeddings."""

    def __init__(self, config):
        super().__init__()
        C, V = config.hidden_size, config.vocab_size
        self.dense = nn.Linear(C, C)
        self.norm = nn.LayerNorm(C, config.layer_norm_eps)
        self.decoder = None if config.tie_decoder else nn.Linear(C, V, bias=False)
        self.bias = nn.Parameter(torch.zeros(V))


class MiniALBERT(nn.Module):
    """num_hidden_groups distinct layers applied num_hidden_layers times; head=False leaves it out."""

    def __init__(self, config, head=True):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_groups))
        adapted = range(config.num_hidden_layers if config.adapter_size else 0)
        self.attention_adapters = nn.ModuleList(Adapter(config) for _ in adapted)
        self.output_adapters = nn.ModuleList(Adapter(config) for _ in adapted)
        self.head = Head(config) if head else None
        initialise(self)

    def layer(self, r):
        """The layer that recursion r applies."""
        return self.layers[r * self.config.num_hidden_groups // self.config.num_hidden_layers]

    def forward(self, ids, mask=None, segments=None, maps=()):
        """ids (B, T), mask (B, T) True at real tokens -> hidden, R + 1 of (B, T, C); attention,
        {r: log-probabilities (B, H, T, T)} for r in maps."""
        mask = None if mask is None else mask[:, None, None, :]      # no query looks at padding
        hidden, attention = [self.embeddings(ids, segments)], {}
        for r in range(self.config.num_hidden_layers):
            own = (self.attention_adapters[r], self.output_adapters[r]) if self.attention_adapters else ()
            x, log_p = self.layer(r)(hidden[-1], mask, r in maps, own)
            hidden.append(x)
            if log_p is not None:
                attention[r] = log_p
        return hidden, attention

    def predict(self, h):
        """h (M, C), hidden states of the places asked about -> logits (M, V)."""
        head, embeddings = self.head, self.embeddings
        h = head.norm(F.gelu(head.dense(h)))
        if head.decoder is not None:
            return head.decoder(h) + head.bias
        if embeddings.project is not None:
            h = h @ embeddings.project.weight            # (M, E): the projection, transposed
        return F.linear(h, embeddings.word.weight, head.bias)


@torch.no_grad()
def initialise(model, plain=False):
    """All initialisation in one place; plain=True is BERT's and the authors'.

    what                     plain        else
    weights, embeddings      N(0, 0.02)   N(0, 0.02)
    biases; norms            0; 1 and 0   0; 1 and 0
    positions                N(0, 0.02)   sinusoids of that size: order is known from the first step
    query and key weights    N(0, 0.02)   4 times larger: attention starts uneven, so it can learn
    an adapter's up          N(0, 0.02)   0: it starts as the LayerNorm of its input
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, Attention) and not plain:
            module.query.weight.mul_(4), module.key.weight.mul_(4)
        if isinstance(module, Adapter) and not plain:
            module.up.weight.zero_()
    if not plain:
        T, E = model.embeddings.position.weight.shape
        angle = torch.arange(T)[:, None] / 10000 ** (torch.arange(E) // 2 * 2 / E)         # (T, E)
        wave = torch.where(torch.arange(E) % 2 == 0, angle.sin(), angle.cos())
        model.embeddings.position.weight.copy_(0.02 * math.sqrt(2) * wave)   # rms of a sine: 1/sqrt(2)


def count_parameters(model):
    """Parameters by part and summed: body (all but the head), stored, and applied, where a shared
    layer counts as often as it is used."""
    def size(*parts):
        return sum(p.numel() for part in parts if part is not None for p in part.parameters())

    counts = {"embeddings": size(model.embeddings), "layers": size(model.layers), "head": size(model.head),
              "adapters": size(model.attention_adapters, model.output_adapters)}
    stored = sum(counts.values())
    unrolled = size(*(model.layer(r) for r in range(model.config.num_hidden_layers)))
    return counts | {"body": stored - counts["head"], "stored": stored,
                     "applied": stored - counts["layers"] + unrolled}


# ---- safetensors by hand: 8 bytes of header length, a JSON header, the tensors' bytes end to end ----

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
          "U8": torch.uint8, "BOOL": torch.bool}


def read_safetensors(path):
    """{name: tensor} mapped from the file without a copy (writes to them stay private), metadata.

    Raises ValueError, naming the file and the tensor, for anything but a well-formed file.
    """
    size = os.path.getsize(path)
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, 100_000_000):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = parse_json(file.read(length))
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise ValueError("__metadata__ is not a map from text to text")
        entries = {name: check_entry(name, entry) for name, entry in header.items()}
        end = 0
        for name in sorted(entries, key=lambda name: entries[name][:2]):
            if entries[name][0] != end:
                raise ValueError(f"tensor {name!r} begins at {entries[name][0]}, the last one ends at {end}")
            end = entries[name][1]
        if 8 + length + end != size:
            raise ValueError(f"the tensors end at byte {8 + length + end} of {size}")
    except ValueError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from error
    data, tensors = np.memmap(path, np.uint8, mode="c", offset=0), {}        # c: copy on write
    for name, (begin, end, dtype, shape) in entries.items():
        raw = torch.from_numpy(data[8 + length + begin:8 + length + end])
        tensors[name] = raw.view(dtype).view(shape) if end > begin else torch.empty(shape, dtype=dtype)
    return tensors, metadata


def check_entry(name, entry):
    """One entry of a header -> (begin, end, dtype, shape)."""
    try:
        dtype, shape, (begin, end) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if len(entry) != 3 or any(type(n) is not int or not 0 <= n < 2**63 for n in [begin, end, *shape]):
            raise ValueError("a number is out of range")
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{end - begin} bytes for the shape {shape}")
        return begin, end, dtype, shape
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"tensor {name!r}: {type(error).__name__} {error}: {str(entry)[:200]}") from error


def write_safetensors(tensors, path, metadata=None):
    """Writes {name: tensor}; what stands at path is the old file or the new one, never half of one."""
    codes, header, offset = {dtype: code for code, dtype in DTYPES.items()}, {}, 0
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))   # all stay aligned
    for name in order:
        begin, offset = offset, offset + tensors[name].numel() * tensors[name].element_size()
        header[name] = {"dtype": codes[tensors[name].dtype], "shape": list(tensors[name].shape),
                        "data_offsets": [begin, offset]}
    text = json.dumps(header | ({"__metadata__": metadata} if metadata else {})).encode()
    text += b" " * (-len(text) % 8)
    write_atomically(path, (len(text).to_bytes(8, "little"), text, *(     # one tensor at a time
        tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy() for name in order)))


def write_atomically(path, chunks):
    """Writes bytes aside, flushes them to the disk, renames: until then what was at path is intact."""
    try:
        with open(f"{path}.tmp", "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{path}.tmp", path)
    finally:
        if os.path.isfile(f"{path}.tmp"):
            os.remove(f"{path}.tmp")


def parse_json(text):
    """The JSON object in some bytes; ValueError also for a name that stands twice, or endless nesting."""
    def unique(pairs):
        if len(dict(pairs)) < len(pairs):
            raise ValueError(f"duplicate names among {str([name for name, _ in pairs])[:200]}")
        return dict(pairs)
    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def read_json(path):
    """The JSON object in a file; ValueError names the file."""
    with open(path, "rb") as file:
        try:
            return parse_json(file.read())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


# ---- Checkpoints -------------------------------------------------------------------------------
# Our names: BERT's, and ALBERT's (what ALBERT lacks has the MiniALBERT authors' names)

BERT, ALBERT = 0, 1
NAMES = {
    "embeddings.word": ("embeddings.word_embeddings",) * 2,
    "embeddings.position": ("embeddings.position_embeddings",) * 2,
    "embeddings.segment": ("embeddings.token_type_embeddings",) * 2,
    "embeddings.norm": ("embeddings.LayerNorm",) * 2,
    "embeddings.project": ("", "encoder.embedding_hidden_mapping_in"),
    "head": ("cls.predictions", "vocab_projector"),
    "head.dense": ("cls.predictions.transform.dense", "vocab_transform"),
    "head.norm": ("cls.predictions.transform.LayerNorm", "vocab_layer_norm"),
    "head.decoder": ("cls.predictions.decoder", "vocab_projector"),
}
for ours, bert, albert in (("attention.query", "attention.self.query", "attention.query"),
                           ("attention.key", "attention.self.key", "attention.key"),
                           ("attention.value", "attention.self.value", "attention.value"),
                           ("attention.output", "attention.output.dense", "attention.dense"),
                           ("attention_norm", "attention.output.LayerNorm", "attention.LayerNorm"),
                           ("intermediate", "intermediate.dense", "ffn"),
                           ("output", "output.dense", "ffn_output"),
                           ("norm", "output.LayerNorm", "full_layer_layer_norm")):
    NAMES[f"layers.{{}}.{ours}"] = (f"encoder.layer.{{}}.{bert}",
                                    f"encoder.albert_layer_groups.{{}}.albert_layers.0.{albert}")
for ours, albert in (("down", "block.0"), ("up", "block.2"), ("norm", "norm")):
    NAMES[f"attention_adapters.{{}}.{ours}"] = ("", f"att_adapters.{{}}.{albert}")
    NAMES[f"output_adapters.{{}}.{ours}"] = ("", f"mlp_adapters.{{}}.{albert}")

SPELLINGS = ((r"^((bert|albert)\.)+", ""), (r"LayerNorm\.gamma$", "LayerNorm.weight"),
             (r"LayerNorm\.beta$", "LayerNorm.bias"), (r"predictions\.decoder\.bias", "predictions.bias"),
             (r"^projector\.", "encoder.embedding_hidden_mapping_in."))      # the last is the authors'
UNUSED = r"pooler\.|cls\.seq_relationship\.|embeddings\.position_ids$"
HEADS = ("cls.predictions.", "vocab_")


def name_in(layout, ours):
    """(BERT, "layers.3.norm.weight") -> "encoder.layer.3.output.LayerNorm.weight"."""
    stem, leaf = ours.rsplit(".", 1)
    return NAMES[re.sub("[0-9]+", "{}", stem)][layout].format(*re.findall("[0-9]+", stem)) + "." + leaf


def identity(config, name):
    """A linear layer that changes nothing, where ALBERT's layout has one that the model has not."""
    return {f"{name}.weight": torch.eye(config.hidden_size), f"{name}.bias": torch.zeros(config.hidden_size)}


def read_weights(path):
    """All tensors of a checkpoint folder, by the names in its files."""
    single, index, pickled = (os.path.join(path, name) for name in (
        "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"))
    if os.path.isfile(single):
        return read_safetensors(single)[0]
    if os.path.isfile(index):
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or any(os.path.basename(str(s)) != s for s in shards.values()):
            raise ValueError(f"{index}: its weight_map does not name files beside it")
        parts = (read_safetensors(os.path.join(path, shard))[0] for shard in sorted(set(shards.values())))
        return {name: tensor for part in parts for name, tensor in part.items()}
    if not os.path.isfile(pickled):
        raise ValueError(f"{path}: no model.safetensors, model.safetensors.index.json or pytorch_model.bin")
    try:                                                 # weights_only: other pickles can run programs
        tensors = torch.load(pickled, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{pickled}: not a file of weights: {str(error).splitlines()[0]}") from error
    if not isinstance(tensors, dict) or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
        raise ValueError(f"{pickled}: not a map from names to tensors")
    return tensors


def load(path):
    """The model in a folder, in float32: a BERT, or a MiniALBERT of the authors' or of ours; without
    a head, model.head is None. ValueError lists each tensor unknown, missing or of another shape."""
    config, found = Config.read(os.path.join(path, "config.json")), {}
    for name, tensor in read_weights(path).items():
        for theirs, usual in SPELLINGS:
            name = re.sub(theirs, usual, name)
        if not re.match(UNUSED, name):
            found[name] = tensor
    layout = BERT if any(name.startswith("encoder.layer.") for name in found) else ALBERT
    decoder, table = (name_in(layout, f"{name}.weight") for name in ("head.decoder", "embeddings.word"))
    config.tie_decoder = decoder not in found or (
        table in found and torch.equal(found[decoder].float(), found[table].float()))
    if config.tie_decoder:
        found.pop(decoder, None)
    if layout == ALBERT and config.embedding_size == config.hidden_size:
        for name, only in identity(config, NAMES["embeddings.project"][ALBERT]).items():
            if name in found and torch.equal(found[name].float(), only):
                del found[name]
    with torch.device("meta"):                           # no memory and no random numbers spent
        model = MiniALBERT(config, head=any(name.startswith(HEADS) for name in found))
    ours = {name_in(layout, name): name for name in model.state_dict()}
    shapes = {theirs: model.state_dict()[name].shape for theirs, name in ours.items()}
    wrong = {"missing": set(ours) - set(found), "unknown": set(found) - set(ours),
             "of another shape than config.json says": {
                 f"{name} {list(found[name].shape)}" for name in set(ours) & set(found)
                 if found[name].shape != shapes[name]}}
    if any(wrong.values()):
        raise ValueError(f"{path}: tensors " + "; ".join(
            f"{how}: {', '.join(sorted(names))}" for how, names in wrong.items() if names))
    model.load_state_dict({name: found[theirs].to(torch.float32, copy=True)
                           for theirs, name in ours.items()}, assign=True)
    return model


def save(model, path, dtype=torch.float32):
    """Writes config.json and model.safetensors in BERT's layout, or ALBERT's, or ALBERT's with adapters."""
    config, tensors = model.config, model.state_dict()
    layout = BERT if config.is_bert else ALBERT
    kind = "MiniALBERT" if config.adapter_size else ("Bert", "Albert")[layout]
    tensors = {name_in(layout, name): tensor.to(dtype) for name, tensor in tensors.items()}
    if kind == "Bert":
        tensors = {name if name.startswith("cls.") else f"bert.{name}": t for name, t in tensors.items()}
    if kind == "Albert":                                 # AlbertModel misses these otherwise
        tensors |= identity(config, "pooler")
        if config.embedding_size == config.hidden_size:
            tensors |= identity(config, NAMES["embeddings.project"][ALBERT])
    os.makedirs(path, exist_ok=True)
    write_safetensors(tensors, os.path.join(path, "model.safetensors"), {"format": "pt"})
    write_atomically(os.path.join(path, "config.json"), [json.dumps({
        "model_type": kind.lower(), "architectures": [kind + ("Model" if model.head is None else "ForMaskedLM")],
        "hidden_act": "gelu", "inner_group_num": 1, "tie_word_embeddings": config.tie_decoder,
        **asdict(config)}, indent=1).encode()])
