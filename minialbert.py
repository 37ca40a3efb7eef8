"""MiniALBERT: BERT's layer, applied recursively. The model and its weights on disk.

Model Distillation via Parameter-Efficient Recursive Transformers, arXiv 2210.06425. One class is
both teacher and student: a BERT is a MiniALBERT that shares nothing.

    model = load("assets/teacher")                    # a BERT, a student of ours or of the authors'
    hidden, attention = model(ids, maps=[3])          # every hidden state, the maps of layer 3
    logits = model.predict(hidden[-1][masked])        # (M, V), for just the places asked about

Dimensions, here and in the other files:
    B batch     T tokens        C hidden width    E embedding width     H heads    D = C / H
    F feed-forward width        A adapter width   V vocabulary          M masked places
    R recursions: layers applied, a layer counted as often as it is used
"""
import json
import os
import pickle
import re
import struct
from dataclasses import asdict, dataclass, fields

import torch
import torch.nn.functional as F
from torch import nn

@dataclass
class Config:
    """The shape of a model, in Hugging Face's ALBERT names. ValueError names a wrong field."""
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
        for field in fields(self):
            name, kind, x = field.name, field.type, getattr(self, field.name)
            least = 1 if kind is int and name != "adapter_size" else 0
            most = 1 if kind is not int else 2**10 if name.startswith("num_") else 2**24
            if type(x) is not kind and (kind, type(x)) != (float, int) or not least <= x <= most:
                raise ValueError(f"{name} is {x!r:.60}, not {kind.__name__} from {least} to {most}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"num_attention_heads do not divide hidden_size {self.hidden_size}")
        if self.num_hidden_groups > self.num_hidden_layers:
            raise ValueError(f"num_hidden_groups {self.num_hidden_groups} exceed num_hidden_layers")

    @property
    def is_bert(self):
        return (self.num_hidden_groups == self.num_hidden_layers and not self.adapter_size
                and self.embedding_size == self.hidden_size)

    @classmethod
    def read(cls, path):
        """The Config in a config.json: BERT's, the MiniALBERT authors' or ours."""
        found = {"hidden_act": "gelu", "adapter_size": 0} | read_json(path)
        try:
            if found["hidden_act"] != "gelu":
                raise ValueError(f"hidden_act {found['hidden_act']!r:.40}: only 'gelu' is built")
            found.setdefault("embedding_size", found["hidden_size"])         # a BERT's config.json
            found.setdefault("num_hidden_groups", found["num_hidden_layers"])        # lacks these
            if found.get("use_adapter"):                 # the authors' way to say A
                found["adapter_size"] = found["hidden_size"] // found["reduction_factor"]
            return cls(**{field.name: found[field.name] for field in fields(cls)
                          if field.name in found or field.type is int})      # no size is guessed
        except KeyError as error:
            raise ValueError(f"{path}: no {error}: is this a BERT or a MiniALBERT?") from error
        except (ValueError, TypeError, ZeroDivisionError) as error:
            raise ValueError(f"{path}: {error}") from error

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
        if (T := ids.shape[1]) > self.position.num_embeddings:
            raise ValueError(f"{T} tokens, but only {self.position.num_embeddings} positions")
        segment = self.segment.weight[0] if segments is None else self.segment(segments)
        x = self.dropout(self.norm(self.word(ids) + self.position.weight[:T] + segment))
        return x if self.project is None else self.project(x)        # (B, T, E) -> (B, T, C)

class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017), without the residual and its norm."""
    def __init__(self, config):
        super().__init__()
        C = config.hidden_size
        self.heads, self.p = config.num_attention_heads, config.attention_probs_dropout_prob
        self.query, self.key, self.value, self.output = (nn.Linear(C, C) for _ in range(4))

    def forward(self, x, mask=None, want_map=False):
        """x (B, T, C), mask (B, 1, 1, T) -> (B, T, C) and, if wanted, log of a map (B, H, T, T)"""
        B, T, C = x.shape
        q, k, v = (linear(x).view(B, T, self.heads, C // self.heads).transpose(1, 2)  # (B, H, T, D)
                   for linear in (self.query, self.key, self.value))
        p, log_p = self.p if self.training else 0.0, None
        if want_map:
            scores = ((q / (C // self.heads) ** 0.5) @ k.transpose(2, 3)).float()    # (B, H, T, T)
            if mask is not None:
                scores = scores.masked_fill(~mask, -1e9)             # finite: a KL's 0 * log 0 is 0
            log_p = scores.log_softmax(-1)               # before dropout: a map is not a coin toss
            y = F.dropout(log_p.exp(), p) @ v
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
    """BERT's layer, post-norm, with a recursion's two adapters where the authors' code has them."""
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
        x = adapters[0](x) if adapters else x            # before attention
        y, log_p = self.attention(x, mask, want_map)
        x = self.attention_norm(x + self.dropout(y))
        x = adapters[1](x) if adapters else x            # before the feed-forward
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
    """num_hidden_groups distinct layers, applied num_hidden_layers times; head=False: no Head."""
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

    def layer(self, r):                                  # the one that recursion r applies
        return self.layers[r * self.config.num_hidden_groups // self.config.num_hidden_layers]

    def forward(self, ids, mask=None, segments=None, maps=()):
        """ids (B, T), mask (B, T) True at real tokens -> hidden, R + 1 of (B, T, C); attention,
        {r: log-probabilities (B, H, T, T)} for r in maps."""
        mask = None if mask is None else mask[:, None, None, :]      # no query looks at padding
        adapters = list(zip(self.attention_adapters, self.output_adapters))
        hidden, attention = [self.embeddings(ids, segments)], {}
        for r in range(self.config.num_hidden_layers):
            x, log_p = self.layer(r)(hidden[-1], mask, r in maps, adapters[r] if adapters else ())
            hidden.append(x)
            if r in maps:
                attention[r] = log_p
        return hidden, attention

    def predict(self, h):
        """h (M, C), hidden states of the places asked about -> logits (M, V)."""
        h = self.head.norm(F.gelu(self.head.dense(h)))
        if self.head.decoder is None and self.embeddings.project is not None:
            h = h @ self.embeddings.project.weight       # (M, E): the projection, transposed
        return F.linear(h, (self.head.decoder or self.embeddings.word).weight, self.head.bias)

@torch.no_grad()
def initialise(model, plain=False):
    """All initialisation in one place: weights and embeddings N(0, 0.02), biases 0, norms 1 and 0.
    That is all if plain, BERT's way and the authors'. Else, moreover:
    - positions are sinusoids of the same size: order is known from the first step
    - query and key weights are 4 times larger: attention starts uneven, so it can learn
    - an adapter's up is 0: it starts as the LayerNorm of its input"""
    for name, p in model.named_parameters():
        nn.init.constant_(p, 1.0 if name.endswith("norm.weight") else 0.0)
        if p.dim() == 2:
            nn.init.normal_(p, std=0.02)
    if plain:
        return
    for layer in model.layers:
        layer.attention.query.weight.mul_(4), layer.attention.key.weight.mul_(4)
    for adapter in (*model.attention_adapters, *model.output_adapters):
        adapter.up.weight.zero_()
    T, E = model.embeddings.position.weight.shape
    angle = torch.arange(T)[:, None] / 10000 ** (torch.arange(E) // 2 * 2 / E)         # (T, E)
    wave = torch.where(torch.arange(E) % 2 == 0, angle.sin(), angle.cos())
    model.embeddings.position.weight.copy_(0.02 * 2**0.5 * wave)     # a sine's rms is 1 / sqrt(2)

def count_parameters(model):
    """Parameters by part; body: without the head; applied: a shared layer counts at each use."""
    counts = dict.fromkeys(("embeddings", "layers", "adapters", "head"), 0)
    for name, p in model.named_parameters():
        counts[name.split(".")[0].split("_")[-1]] += p.numel()       # both adapters are "adapters"
    stored, layer = sum(counts.values()), counts["layers"] // model.config.num_hidden_groups
    applied = stored - counts["layers"] + layer * model.config.num_hidden_layers
    return counts | {"body": stored - counts["head"], "stored": stored, "applied": applied}

# ---- Files. safetensors: 8 bytes of header length, JSON header, the tensors' bytes end to end --
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
          "U8": torch.uint8, "BOOL": torch.bool}

def read_json(path, begin=0, length=-1):
    """The JSON object in a file or in a part of it. ValueError names the file."""
    def unique(pairs):
        if len(dict(pairs)) < len(pairs):
            raise ValueError(f"a name stands twice among {[name for name, _ in pairs]}"[:300])
        return dict(pairs)

    with open(path, "rb") as file:
        file.seek(begin)
        text = file.read(length)
    try:                                                 # to JSON, if not to Python, -0 is no int
        return {} | json.loads(text.decode(), object_pairs_hook=unique,
                               parse_int=lambda digits: -0.0 if digits == "-0" else int(digits))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON object: {error}") from error

def read_safetensors(path):
    """{name: tensor} mapped from the file without a copy (writes to them stay private), metadata.
    ValueError, naming the file and the tensor, for anything but a well-formed file."""
    name, tensors, here = "header", {}, 0
    try:
        size = os.path.getsize(path)
        data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        start = 8 + int(data[:8].view(torch.int64))
        if not 8 < start <= min(size, 100_000_008):
            raise ValueError(f"{start - 8} bytes long in a file of {size}")
        header = read_json(path, 8, start - 8)
        name, metadata = "__metadata__", header.pop("__metadata__", {})
        "".join([*metadata.values(), *header]).encode()                  # an error if not text
        for name, entry in header.items():
            dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
            begin, end = entry["data_offsets"]
            if any(type(n) is not int or not 0 <= n < 2**62 for n in (begin, end, *shape)):
                raise ValueError(f"shape {shape}, bytes {begin} to {end}")
            raw = data[start + begin:start + end]
            raw = raw.clone() if (start + begin) % dtype.itemsize else raw           # aligned
            tensors[name] = raw.view(dtype).view(shape)
        spans = sorted((header[name]["data_offsets"], name) for name in header)
        for (begin, end), name in [*spans, ((size - start, size), "the end of the file")]:
            if begin != here:
                raise ValueError(f"begins at byte {begin}, the tensor before ends at {here}")
            here = end
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: not safetensors: {name!r}: {error!r:.500}") from error
    return tensors, metadata

def write_safetensors(tensors, path, metadata=None):
    """Writes {name: tensor}; what stands at path is the old file or the new, never half of one."""
    codes, header, end, raw = {dtype: code for code, dtype in DTYPES.items()}, {}, 0, []
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):  # aligned
        tensor = tensors[name].detach().cpu().contiguous()
        header[name] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [end, end := end + tensor.nbytes]}
        raw.append(tensor.view(-1).view(torch.uint8).numpy())
    text = json.dumps({"__metadata__": metadata or {}} | header).encode()
    text += b" " * (-len(text) % 8)
    write_atomically(path, [len(text).to_bytes(8, "little"), text, *raw])

def write_atomically(path, chunks):
    """Writes bytes aside, flushes them to the disk, renames: until then what was at path stays."""
    try:
        with open(f"{path}.tmp", "wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{path}.tmp", path)
    except OSError as error:                             # a full disk does not say which one it is
        raise OSError(error.errno or 0, error.strerror or str(error),
                      error.filename or str(path)) from error
    finally:
        if os.path.isfile(f"{path}.tmp"):
            os.remove(f"{path}.tmp")

# ---- Checkpoints. Our names, BERT's, ALBERT's (or the MiniALBERT authors'); # is a number ------
NAMES = {ours: theirs for ours, *theirs in map(str.split, """
embeddings.word           embeddings.word_embeddings              embeddings.word_embeddings
embeddings.position       embeddings.position_embeddings          embeddings.position_embeddings
embeddings.segment        embeddings.token_type_embeddings        embeddings.token_type_embeddings
embeddings.norm           embeddings.LayerNorm                    embeddings.LayerNorm
embeddings.project        -                             encoder.embedding_hidden_mapping_in
layers.#.attention        encoder.layer.#.attention.self          LAYER.attention
layers.#.attention.output encoder.layer.#.attention.output.dense  LAYER.attention.dense
layers.#.attention_norm   encoder.layer.#.attention.output.LayerNorm  LAYER.attention.LayerNorm
layers.#.intermediate     encoder.layer.#.intermediate.dense      LAYER.ffn
layers.#.output           encoder.layer.#.output.dense            LAYER.ffn_output
layers.#.norm             encoder.layer.#.output.LayerNorm        LAYER.full_layer_layer_norm
attention_adapters        -                                       att_adapters
attention_adapters.#.down -                                       att_adapters.#.block.0
attention_adapters.#.up   -                                       att_adapters.#.block.2
output_adapters           -                                       mlp_adapters
output_adapters.#.down    -                                       mlp_adapters.#.block.0
output_adapters.#.up      -                                       mlp_adapters.#.block.2
head.dense                cls.predictions.transform.dense         vocab_transform
head.norm                 cls.predictions.transform.LayerNorm     vocab_layer_norm
head.decoder              cls.predictions.decoder                 vocab_projector
head                      cls.predictions                         vocab_projector
""".replace("LAYER", "encoder.albert_layer_groups.#.albert_layers.0").strip().splitlines())}
BERT, ALBERT = 0, 1
SPELLINGS = {r"^((bert|albert)\.)+": "", r"\.gamma$": ".weight", r"\.beta$": ".bias",
             r"predictions\.decoder\.bias$": "predictions.bias",
             r"^projector\.": "encoder.embedding_hidden_mapping_in."}        # the authors' name

def name_in(layout, ours):
    """(BERT, "layers.3.norm.weight") -> "encoder.layer.3.output.LayerNorm.weight"."""
    number, stem = "".join(re.findall("[0-9]", ours)), re.sub("[0-9]+", "#", ours)
    known = max((name for name in NAMES if stem.startswith(name)), key=len)
    return (NAMES[known][layout] + stem[len(known):]).replace("#", number)

def identity(config):
    """The linear layers that ALBERT has and the model has not: such that they change nothing."""
    C = config.hidden_size
    names = ["pooler"] + ["encoder.embedding_hidden_mapping_in"] * (config.embedding_size == C)
    return {f"{name}.{leaf}": tensor for name in names
            for leaf, tensor in (("weight", torch.eye(C)), ("bias", torch.zeros(C)))}

def read_weights(path):
    """All tensors of a checkpoint folder, by the names in its files."""
    files = {name: os.path.join(path, name) for name in os.listdir(path)}
    if "model.safetensors" in files:
        return read_safetensors(files["model.safetensors"])[0]
    if "model.safetensors.index.json" in files:
        shards = read_json(files["model.safetensors.index.json"]).get("weight_map")
        if not isinstance(shards, dict) or not files.keys() >= set(map(str, shards.values())):
            raise ValueError(f"{path}: the index's weight_map names files that are not beside it")
        parts = {shard: read_safetensors(files[shard])[0] for shard in set(shards.values())}
        if wrong := {(name, s) for s in parts for name in parts[s]} ^ set(shards.items()):
            raise ValueError(f"{path}: in a file or in its index, not in both: {sorted(wrong)}")
        return {name: parts[shard][name] for name, shard in shards.items()}
    if "pytorch_model.bin" not in files:
        raise ValueError(f"{path}: no model.safetensors, its index.json or pytorch_model.bin")
    try:                                                 # weights_only: other pickles run programs
        found = torch.load(files["pytorch_model.bin"], map_location="cpu", weights_only=True)
        if any(t.is_meta or t.nbytes > t.untyped_storage().nbytes() for t in found.values()):
            raise ValueError("larger than the file")     # it has no numbers or repeats some
        return {str(name): tensor.detach() for name, tensor in found.items()}
    except (pickle.UnpicklingError, struct.error, RuntimeError, EOFError, ValueError, LookupError,
            TypeError, AttributeError, AssertionError) as error:
        raise ValueError(f"{files['pytorch_model.bin']}: not weights: {error!r:.40}") from error

def load(path):
    """The model in a folder, in float32: a BERT, a MiniALBERT of ours or of the authors'. Its head
    may be None. ValueError lists each tensor that is unknown, missing or of another shape."""
    config, found = Config.read(os.path.join(path, "config.json")), {}
    for name, tensor in sorted(read_weights(path).items()):      # decoder.bias after, so over, bias
        for theirs, usual in SPELLINGS.items():
            name = re.sub(theirs, usual, name)
        if not re.match(r"pooler\.|cls\.seq_relationship\.|embeddings\.position_ids$", name):
            found[name] = tensor                         # the others are of no use here
    layout = BERT if any(name.startswith("encoder.layer.") for name in found) else ALBERT
    table, decoder = (name_in(layout, f"{n}.weight") for n in ("embeddings.word", "head.decoder"))
    square = found.get("encoder.embedding_hidden_mapping_in.weight", torch.empty(0)).shape
    twins = identity(config) if square == (config.hidden_size,) * 2 else {}      # or of any size
    for name, twin in (twins | {decoder: found.get(table, torch.empty(0))}).items():
        if name in found and torch.equal(found[name].float(), twin.float()):
            del found[name]                              # it says nothing new
    config.tie_decoder = decoder not in found
    with torch.device("meta"):                           # no memory and no random numbers spent
        model = MiniALBERT(config, head=any(re.match("vocab_|cls.predictions", n) for n in found))
    ours = {name_in(layout, name): name for name in model.state_dict()}
    want = {name_in(layout, name): list(p.shape) for name, p in model.state_dict().items()}
    have = {name: list(t.shape) if t.is_floating_point() else t.dtype for name, t in found.items()}
    wrong = [f"{name!r} is {have.get(name, 'missing')}, not {want.get(name, 'known')}"
             for name in sorted(have.keys() | want.keys()) if have.get(name) != want.get(name)]
    if wrong:
        raise ValueError(f"{path}: {'; '.join(wrong)}")
    model.load_state_dict({name: found[theirs].to(torch.float32, copy=True)
                           for theirs, name in ours.items()}, assign=True)
    return model

def save(model, path, dtype=torch.float32):
    """Writes config.json and model.safetensors in BERT's layout, or else in ALBERT's."""
    config, layout = model.config, BERT if model.config.is_bert else ALBERT
    kind = "MiniALBERT" if config.adapter_size else ("Bert", "Albert")[layout]
    tensors = identity(config) if kind == "Albert" else {}       # or AlbertModel would miss them
    for name, tensor in model.state_dict().items():
        name = name_in(layout, name)
        tensors[f"bert.{name}" if kind == "Bert" and not name.startswith("cls.") else name] = tensor
    if kind == "Bert" and model.head and model.head.decoder:
        tensors["cls.predictions.decoder.bias"] = model.head.bias
    os.makedirs(path, exist_ok=True)
    write_safetensors({name: tensor.to(dtype) for name, tensor in tensors.items()},
                      os.path.join(path, "model.safetensors"), {"format": "pt"})
    facts = {"model_type": kind.lower(), "hidden_act": "gelu", "inner_group_num": 1,
             "architectures": [kind + ("ForMaskedLM" if model.head else "Model")],
             "tie_word_embeddings": config.tie_decoder, **asdict(config)}
    write_atomically(os.path.join(path, "config.json"), [json.dumps(facts, indent=1).encode()])
