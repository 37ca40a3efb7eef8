"""MiniALBERT: one transformer layer of BERT, applied again and again. This file is the model.

The paper: MiniALBERT: Model Distillation via Parameter-Efficient Recursive Transformers
(arXiv 2210.06425). What makes a MiniALBERT of a BERT:

- recursion: one layer, or a few, is applied num_hidden_layers times with the same weights
- factorised embeddings: the tables have a small width E; a linear layer widens them to C
- bottleneck adapters: each recursion has two small modules of its own, so that it can differ

One class is both teacher and student, because a BERT is a MiniALBERT that shares nothing.

    from checkpoint import load
    model = load("assets/teacher")                  # a BERT, or a student
    hidden, attention = model(ids, maps=[3])        # all hidden states; the map of layer 3
    logits = model.predict(hidden[-1][is_masked])   # (M, V), at the masked places alone

Dimensions, here and in the other files:

    B  sequences in a batch         T  tokens in a sequence      M  masked places in a batch
    C  width of hidden states       E  width of embeddings       V  tokens in the vocabulary
    H  attention heads              D  width of a head, C / H
    F  width of the feed-forward    A  width of an adapter
    R  recursions: how many times a layer is applied (a BERT's number of layers)
    G  groups: how many different layers there are (1 in a MiniALBERT, R in a BERT)
"""
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    """The shape of a model, by the names of Hugging Face's ALBERT.

    ValueError names a field that has a wrong type, is out of range or contradicts another.
    """
    vocab_size: int = 30522                     # V
    embedding_size: int = 128                   # E: smaller than C in a student, C in a BERT
    hidden_size: int = 768                      # C
    num_hidden_layers: int = 6                  # R
    num_hidden_groups: int = 1                  # G
    num_attention_heads: int = 12               # H
    intermediate_size: int = 3072               # F
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512          # the largest T
    type_vocab_size: int = 2                    # segments: first text, second text
    layer_norm_eps: float = 1e-12
    adapter_size: int = 0                       # A; 0: no adapters; the paper has C / 16
    tie_decoder: bool = True                    # False: the authors' separate (V, C) output matrix

    def __post_init__(self):
        for field in fields(self):
            check_field(field.name, field.type, getattr(self, field.name))
        if self.hidden_size % self.num_attention_heads != 0:
            raise ValueError(f"hidden_size {self.hidden_size} is not divisible by "
                             f"num_attention_heads {self.num_attention_heads}")
        if self.num_hidden_groups > self.num_hidden_layers:
            raise ValueError(f"num_hidden_groups {self.num_hidden_groups} is more than "
                             f"num_hidden_layers {self.num_hidden_layers}")

    @property
    def is_bert(self):
        """Is this the shape of an ordinary BERT, which shares nothing?"""
        shares_nothing = self.num_hidden_groups == self.num_hidden_layers
        factorised = self.embedding_size != self.hidden_size
        return shares_nothing and not factorised and self.adapter_size == 0


def check_field(name, kind, value):
    """Raise ValueError if a field of Config has a wrong type or is out of range.

    A config.json may come from anywhere: the limits keep a damaged one from taking all memory.
    """
    if kind is bool:
        if type(value) is not bool:
            raise ValueError(f"{name} is {value!r:.60}, but must be true or false")
        return
    if kind is float:
        allowed = (int, float)
        smallest, largest = 0, 1
    else:
        allowed = (int,)
        smallest = 0 if name == "adapter_size" else 1
        largest = 2**10 if name.startswith("num_") else 2**24
    if type(value) not in allowed or not smallest <= value <= largest:
        raise ValueError(f"{name} is {value!r:.60}, but must be {kind.__name__} "
                         f"from {smallest} to {largest}")


class Embeddings(nn.Module):
    """LayerNorm(word + position + segment) at width E, then a projection to width C if E != C."""

    def __init__(self, config):
        super().__init__()
        E = config.embedding_size
        C = config.hidden_size
        self.word = nn.Embedding(config.vocab_size, E)
        self.position = nn.Embedding(config.max_position_embeddings, E)
        self.segment = nn.Embedding(config.type_vocab_size, E)
        self.norm = nn.LayerNorm(E, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.project = None
        if E != C:
            self.project = nn.Linear(E, C)

    def forward(self, ids, segments=None):
        """Embed token numbers ids (B, T) -> (B, T, C).

        segments (B, T): 0 in the first text, 1 in the second; None: all 0.
        """
        T = ids.shape[1]
        if T > self.position.num_embeddings:
            raise ValueError(f"{T} tokens, but the model has only "
                             f"{self.position.num_embeddings} positions")
        word = self.word(ids)                            # (B, T, E)
        position = self.position.weight[:T]              # (T, E)
        if segments is None:
            segment = self.segment.weight[0]             # (E,)
        else:
            segment = self.segment(segments)             # (B, T, E)
        x = self.dropout(self.norm(word + position + segment))
        if self.project is not None:
            x = self.project(x)                          # (B, T, E) -> (B, T, C)
        return x


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017), without the residual and its LayerNorm."""

    def __init__(self, config):
        super().__init__()
        C = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.dropout_prob = config.attention_probs_dropout_prob
        self.query = nn.Linear(C, C)
        self.key = nn.Linear(C, C)
        self.value = nn.Linear(C, C)
        self.output = nn.Linear(C, C)

    def split_heads(self, x):
        """(B, T, C) -> (B, H, T, D)"""
        B, T, C = x.shape
        return x.view(B, T, self.num_heads, C // self.num_heads).transpose(1, 2)

    def forward(self, x, mask=None, want_map=False):
        """Let each token look at all tokens.

        x (B, T, C); mask (B, 1, 1, T) is True at real tokens. Returns (B, T, C) and the
        attention map as log-probabilities (B, H, T, T), in which row i says where token i
        looks. The map is None unless want_map is True.
        """
        query = self.split_heads(self.query(x))          # (B, H, T, D)
        key = self.split_heads(self.key(x))
        value = self.split_heads(self.value(x))
        dropout_prob = self.dropout_prob if self.training else 0.0
        log_map = None
        if want_map:
            D = query.shape[-1]
            scores = (query / D**0.5) @ key.transpose(2, 3)                   # (B, H, T, T)
            scores = scores.float()
            if mask is not None:
                # A large negative number, not -inf: in the KL divergence 0 * -inf would be nan.
                scores = scores.masked_fill(~mask, -1e9)
            # The map is taken before dropout: what is to be matched must not be random.
            log_map = scores.log_softmax(-1)
            attention_probs = F.dropout(log_map.exp(), dropout_prob)
            mixed = attention_probs @ value              # (B, H, T, D)
        else:
            # The same function as above, in one call that never stores a map.
            mixed = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, dropout_p=dropout_prob)
        merged = mixed.transpose(1, 2).reshape(x.shape)  # (B, H, T, D) -> (B, T, C)
        return self.output(merged), log_map


class Adapter(nn.Module):
    """A bottleneck adapter (Houlsby et al. 2019): LayerNorm(x + up(gelu(down(x)))), C -> A -> C.

    Each recursion has two of its own; everything else is shared.
    """

    def __init__(self, config):
        super().__init__()
        self.down = nn.Linear(config.hidden_size, config.adapter_size)
        self.up = nn.Linear(config.adapter_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x):
        bottleneck = F.gelu(self.down(x))                # (B, T, A)
        return self.norm(x + self.up(bottleneck))        # (B, T, C)


class Layer(nn.Module):
    """BERT's layer: attention, add, norm, feed-forward, add, norm."""

    def __init__(self, config):
        super().__init__()
        C = config.hidden_size
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(C, config.layer_norm_eps)
        self.intermediate = nn.Linear(C, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, C)
        self.norm = nn.LayerNorm(C, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x, mask=None, want_map=False, adapters=None):
        """Apply the layer to x (B, T, C) -> (B, T, C), attention map or None (see Attention).

        adapters: the recursion's two adapters, placed as in the authors' code: the first
        before attention, the second before the feed-forward.
        """
        if adapters is not None:
            x = adapters[0](x)
        attended, log_map = self.attention(x, mask, want_map)
        x = self.attention_norm(x + self.dropout(attended))
        if adapters is not None:
            x = adapters[1](x)
        expanded = F.gelu(self.intermediate(x))          # (B, T, F)
        x = self.norm(x + self.dropout(self.output(expanded)))
        return x, log_map


class Head(nn.Module):
    """The parameters of BERT's masked-language-model head; MiniALBERT.predict computes with them.

    A tied head has no decoder of its own: it uses the embeddings backwards.
    """

    def __init__(self, config):
        super().__init__()
        C = config.hidden_size
        V = config.vocab_size
        self.dense = nn.Linear(C, C)
        self.norm = nn.LayerNorm(C, config.layer_norm_eps)
        self.decoder = None
        if not config.tie_decoder:
            self.decoder = nn.Linear(C, V, bias=False)
        self.bias = nn.Parameter(torch.zeros(V))


class MiniALBERT(nn.Module):
    """G different layers, applied R times. head=False: without the masked-language-model head."""

    def __init__(self, config, head=True):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_groups))
        num_adapters = 0
        if config.adapter_size > 0:
            num_adapters = config.num_hidden_layers      # of each kind, one a recursion
        self.attention_adapters = nn.ModuleList(Adapter(config) for _ in range(num_adapters))
        self.output_adapters = nn.ModuleList(Adapter(config) for _ in range(num_adapters))
        self.head = None
        if head:
            self.head = Head(config)
        initialise(self)

    def layer_of_recursion(self, r):
        """Return the layer that recursion r applies: the first R / G recursions share layer 0."""
        return self.layers[r * self.config.num_hidden_groups // self.config.num_hidden_layers]

    def adapters_of_recursion(self, r):
        """Return the two adapters of recursion r, or None if the model has none."""
        if self.config.adapter_size == 0:
            return None
        return self.attention_adapters[r], self.output_adapters[r]

    def forward(self, ids, mask=None, segments=None, maps=()):
        """Run the encoder on token numbers ids (B, T).

        mask: (B, T), True or 1 at real tokens, False or 0 at padding; None: no padding
        segments: (B, T) of 0 and 1; None: all 0
        maps: numbers of the recursions whose attention maps are wanted

        Returns
        hidden: a list of R + 1 tensors (B, T, C), the embeddings and the output of each recursion
        attention: {r: log-probabilities (B, H, T, T)} for each r in maps
        """
        if mask is not None:
            mask = mask.bool()[:, None, None, :]         # (B, 1, 1, T): no token looks at padding
        x = self.embeddings(ids, segments)               # (B, T, C)
        hidden = [x]
        attention = {}
        for r in range(self.config.num_hidden_layers):
            layer = self.layer_of_recursion(r)           # with G = 1 it is always the same layer
            adapters = self.adapters_of_recursion(r)     # these are the recursion's own
            x, log_map = layer(x, mask, want_map=r in maps, adapters=adapters)
            hidden.append(x)
            if r in maps:
                attention[r] = log_map
        return hidden, attention

    def predict(self, hidden):
        """Turn the last hidden states (M, C) of M places into logits over the vocabulary (M, V).

        A tied head decodes with the input embeddings: with factorised ones first from C back
        to E by the projection's transpose, then from E to V by the word table's transpose.
        """
        x = self.head.norm(F.gelu(self.head.dense(hidden)))                   # (M, C)
        if self.head.decoder is not None:
            return F.linear(x, self.head.decoder.weight, self.head.bias)
        if self.embeddings.project is not None:
            x = x @ self.embeddings.project.weight       # (M, C) @ (C, E) -> (M, E)
        return F.linear(x, self.embeddings.word.weight, self.head.bias)


@torch.no_grad()
def initialise(model, plain=False):
    """Give all parameters their first values: weights N(0, 0.02), biases 0, LayerNorms 1 and 0.

    That is BERT's way and the authors', and all that is done if `plain`. By default there is more:

    - positions are sinusoids of the same size, so that order is known from the first step
    - query and key weights are 4 times larger: attention starts uneven, so that it can learn
    - an adapter's `up` is 0, so that the adapter starts as the LayerNorm of its input
    """
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            nn.init.ones_(parameter)
        elif parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)
        else:
            nn.init.zeros_(parameter)
    if plain:
        return
    for layer in model.layers:
        layer.attention.query.weight.mul_(4)
        layer.attention.key.weight.mul_(4)
    for adapter in list(model.attention_adapters) + list(model.output_adapters):
        adapter.up.weight.zero_()
    num_positions, E = model.embeddings.position.weight.shape
    # The root mean square of a sine is 1 / sqrt(2), so that of a wave times 0.02 * sqrt(2) is 0.02.
    model.embeddings.position.weight.copy_(0.02 * 2**0.5 * sinusoids(num_positions, E))


def sinusoids(num_positions, width):
    """Compute the position encodings of Vaswani et al. 2017 -> (num_positions, width)."""
    position = torch.arange(num_positions)[:, None]      # (T, 1)
    column = torch.arange(width)                         # (E,)
    wavelength = 10000 ** (column // 2 * 2 / width)      # two neighbouring columns share one
    angle = position / wavelength                        # (T, E)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos())


def count_parameters(model):
    """Count a model's parameters: {part: number}.

    embeddings, layers, adapters, head: the parts
    stored: all of them
    body: all but the head
    applied: a shared layer counted each time that it is applied, a measure of the work done
    """
    counts = {"embeddings": 0, "layers": 0, "adapters": 0, "head": 0}
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        if part in ("attention_adapters", "output_adapters"):
            part = "adapters"
        counts[part] += parameter.numel()
    stored = sum(counts.values())
    one_layer = counts["layers"] // model.config.num_hidden_groups
    counts["stored"] = stored
    counts["body"] = stored - counts["head"]
    counts["applied"] = stored - counts["layers"] + one_layer * model.config.num_hidden_layers
    return counts
