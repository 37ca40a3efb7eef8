"""MiniALBERT: one transformer layer of BERT, applied again and again. This file is the model.

The paper: MiniALBERT: Model Distillation via Parameter-Efficient Recursive Transformers
(arXiv 2210.06425). A MiniALBERT differs from a BERT in three ways:

- recursion: one layer is applied num_hidden_layers times with the same weights; or there are a few
  layers, and each is applied several times in a row
- factorised embeddings: the tables have a small width E; a linear layer widens them to C
- each recursion has small modules of its own. The paper's are two bottleneck adapters, one before
  attention and one before the feed-forward; they change the hidden states. Here a model can have
  these, or corrections (low-rank matrices that are added to the layer's six matrices), or both. All
  other parameters are shared, also the layer's biases and LayerNorms

distill.py starts a student from its teacher (start_from_teacher) and has the losses that compare
the two (Distillation). One of them, the elastic loss, trains a student to predict after fewer
recursions, too. Then keep_recursions, below, can remove the later recursions.

One class serves for teacher and student, because a BERT is a MiniALBERT that shares nothing.

    from checkpoint import load
    model = load("assets/teacher")                  # a BERT, or a student
    hidden, attention = model(ids, maps=[3])        # attention: {3: log-probabilities (B, H, T, T)}
    logits = model.predict(hidden[-1][is_masked])   # is_masked (B, T) is True at M places -> (M, V)

Dimensions, here and in the other files:

    B  sequences in a batch         T  tokens in a sequence      M  masked places in a batch
    C  width of hidden states       E  width of embeddings       V  tokens in the vocabulary
    H  attention heads              D  width of a head, C / H
    I  width of the feed-forward    A  width of an adapter
    K  rank of a correction
    R  recursions: how many times a layer is applied in all; BERT's num_hidden_layers
    L  layers that the teacher applies, the R of the teacher's Config
    G  groups: how many different layers there are; usually 1 in a MiniALBERT, R in a BERT
Layers and recursions are counted from 0.
"""
import copy
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    """The shape of a model.

    The fields are named as in Hugging Face's ALBERT, except the last three. If a field has a wrong
    type, is out of range or contradicts another one, Config(...) raises a ValueError that names it.
    The activation is always the exact gelu, as in BERT.
    """
    vocab_size: int = 30522                     # V
    embedding_size: int = 128                   # E: C in a BERT, smaller in most students
    hidden_size: int = 768                      # C
    num_hidden_layers: int = 6                  # R: ALBERT's name for the number of recursions
    num_hidden_groups: int = 1                  # G: the number of layers in model.layers
    num_attention_heads: int = 12               # H
    intermediate_size: int = 3072               # I
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512          # the largest T
    type_vocab_size: int = 2                    # segments: first text, second text
    layer_norm_eps: float = 1e-12
    adapter_size: int = 0                       # A; 0: no adapters; the paper has C / 16
    tie_decoder: bool = True                    # False: the authors' separate (V, C) output matrix
    correction_rank: int = 0                    # K; 0: no corrections

    def __post_init__(self):
        check_config(self)

    @property
    def has_corrections(self):
        """True if each recursion has corrections of its own."""
        return self.correction_rank > 0

    @property
    def has_own_parts(self):
        """True if each recursion has adapters or corrections of its own."""
        return self.adapter_size > 0 or self.has_corrections

    @property
    def is_bert(self):
        """True if this is the shape of an ordinary BERT, which shares nothing.

        A BERT may have a tied decoder or a decoder of its own, so tie_decoder does not matter.
        """
        shares_nothing = self.num_hidden_groups == self.num_hidden_layers
        factorised = self.embedding_size != self.hidden_size
        return shares_nothing and not factorised and not self.has_own_parts


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm whose output has the same dtype as its input.

    Under autocast, torch's LayerNorm returns float32 for bfloat16 input on a GPU, but bfloat16 on
    a CPU. As float32 the hidden states would take twice the memory.
    """

    def forward(self, x):
        return super().forward(x).to(x.dtype)


class Embeddings(nn.Module):
    """LayerNorm(word + position + segment) at width E, then a projection to width C if E != C."""

    def __init__(self, config):
        super().__init__()
        E = config.embedding_size
        C = config.hidden_size
        self.word = nn.Embedding(config.vocab_size, E)
        self.position = nn.Embedding(config.max_position_embeddings, E)
        self.segment = nn.Embedding(config.type_vocab_size, E)
        self.norm = LayerNorm(E, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.project = None
        if E != C:
            self.project = nn.Linear(E, C)

    def forward(self, ids, segments=None):
        """Embed the token numbers ids (B, T) -> (B, T, C).

        segments (B, T) is 0 for tokens of the first text and 1 for the second; None means all 0.
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
        elif torch.is_autocast_enabled(x.device.type):
            # Under autocast a projection would return bfloat16. This model has none, so x is cast.
            # Then all hidden states have this dtype (see LayerNorm), which takes half the memory.
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return x


class Adapter(nn.Module):
    """A bottleneck adapter, C -> A -> C: LayerNorm(x + up(gelu(down(x)))).

    It is the adapter of Houlsby et al. 2019 plus a LayerNorm, as in the code of the MiniALBERT
    paper. If a model has adapters, each recursion has two of its own.
    """

    def __init__(self, config):
        super().__init__()
        self.down = nn.Linear(config.hidden_size, config.adapter_size)
        self.up = nn.Linear(config.adapter_size, config.hidden_size)
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x):
        bottleneck = F.gelu(self.down(x))                # (B, T, A)
        return self.norm(x + self.up(bottleneck))        # (B, T, C)


class LowRank(nn.Module):
    """A matrix up @ down of shape (num_out, num_in), like nn.Linear's weight.

    Its rank is at most K. It stores K * (num_out + num_in) numbers, which get their values in
    initialise(). It has no forward(), because it is only added to another matrix.
    """

    def __init__(self, num_in, num_out, rank):
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, num_in))
        self.up = nn.Parameter(torch.empty(num_out, rank))

    def matrix(self):
        """Multiply the two factors -> (num_out, num_in)."""
        return self.up @ self.down


class Corrections(nn.ModuleDict):
    """The low-rank matrices that one recursion adds to the six matrices of the shared layer.

    It is a dict {name: LowRank}; each LowRank is one correction. CORRECTED, below Layer, says to
    which matrix each of them is added.

    Low-rank changes of a matrix come from LoRA (Hu et al. 2021). Bae et al. 2024 gave each
    recursion changes of its own (Relaxed Recursive Transformers, arXiv 2410.20672).
    """

    def __init__(self, config):
        C = config.hidden_size
        I = config.intermediate_size
        K = config.correction_rank
        super().__init__({
            "query": LowRank(C, C, K),
            "key": LowRank(C, C, K),
            "value": LowRank(C, C, K),
            "attention_output": LowRank(C, C, K),
            "intermediate": LowRank(C, I, K),
            "output": LowRank(I, C, K)})


def apply_linear(linear, x, corrections, name):
    """Apply an nn.Linear of a Layer to x, with its weight corrected for this call.

    corrections: the recursion's Corrections, or None
    name: says which of the six corrections belongs to this nn.Linear, such as "query"

    The gradient reaches the shared weight and both factors of the LowRank. With a correction the
    module `linear` is not called, so forward hooks that a user has put on it do not run.
    """
    if corrections is None:
        return linear(x)
    # The sum is a new tensor. linear.weight does not change, because other recursions use it, too.
    weight = linear.weight + corrections[name].matrix()
    return F.linear(x, weight, linear.bias)


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
        """Split the width C into H heads: (B, T, C) -> (B, H, T, D)."""
        B, T, C = x.shape
        return x.view(B, T, self.num_heads, C // self.num_heads).transpose(1, 2)

    def log_attention_map(self, query, key, mask):
        """Compute log softmax(query key^T / sqrt(D)) of each head -> (B, H, T, T).

        The loss that compares maps needs logarithms. log_softmax computes them directly; the
        logarithm of a softmax would be -inf where the softmax rounds to 0.

        query and key (B, H, T, D); mask (B, 1, 1, T) or None: see forward.
        """
        D = query.shape[-1]
        # The query is divided, not the scores. The result is the same, but usually the query has
        # fewer numbers: B * H * T * D, not B * H * T * T.
        query = query / D**0.5
        scores = query @ key.transpose(2, 3)             # (B, H, T, T)
        # Under autocast the scores are bfloat16. They are cast to float32, because a map in
        # bfloat16 would be too coarse for the loss that compares maps.
        scores = scores.float()
        if mask is not None:
            # Padding gets the score -1e9, so that its probability is 0. With -inf the KL divergence
            # of two maps would compute -inf - (-inf), which is nan.
            scores = scores.masked_fill(~mask, -1e9)
        return scores.log_softmax(-1)

    def forward(self, x, mask=None, want_map=False, corrections=None):
        """Let each token look at all tokens that are not padding.

        x (B, T, C); mask (B, 1, 1, T) is False at padding; corrections: None, or the recursion's
        Corrections; four of the six in it are used here. Returns (B, T, C) and the attention map
        as log-probabilities (B, H, T, T), in which row i says where token i looks. The map is None
        unless want_map is True.
        """
        # Without corrections, apply_linear(self.query, x, ...) is self.query(x).
        query = apply_linear(self.query, x, corrections, "query")             # (B, T, C)
        key = apply_linear(self.key, x, corrections, "key")
        value = apply_linear(self.value, x, corrections, "value")
        query = self.split_heads(query)                  # (B, H, T, D)
        key = self.split_heads(key)
        value = self.split_heads(value)
        log_map = None
        if want_map:
            # The map is taken before dropout: what the student has to match must not be random.
            log_map = self.log_attention_map(query, key, mask)                    # (B, H, T, T)
            attention_probs = F.dropout(log_map.exp(), self.dropout_prob, self.training)
            # Under autocast the values are bfloat16, so the probabilities are cast to their dtype.
            context = attention_probs.to(value.dtype) @ value                 # (B, H, T, D)
        else:
            # PyTorch's function computes the same attention, but it need not store the map. Its
            # attn_mask, like `mask`, is True where a token may look.
            dropout_prob = self.dropout_prob if self.training else 0.0
            context = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, dropout_p=dropout_prob)
        context = context.transpose(1, 2).reshape(x.shape)    # (B, H, T, D) -> (B, T, C)
        attended = apply_linear(self.output, context, corrections, "attention_output")
        return attended, log_map


class Layer(nn.Module):
    """BERT's layer: attention, add, norm, feed-forward, add, norm; adapters are optional."""

    def __init__(self, config):
        super().__init__()
        C = config.hidden_size
        self.attention = Attention(config)
        self.attention_norm = LayerNorm(C, config.layer_norm_eps)
        self.intermediate = nn.Linear(C, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, C)
        self.norm = LayerNorm(C, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x, mask=None, want_map=False, adapters=None, corrections=None):
        """Apply the layer to x (B, T, C).

        adapters: None, or the recursion's two adapters. As in the authors' code the first changes x
            before attention, the second before the feed-forward. The residual connections, too, use
            the x that an adapter has changed
        corrections: None, or the recursion's Corrections

        Returns the new x (B, T, C) and the attention map, or None for it (see Attention.forward).
        """
        if adapters is not None:
            attention_adapter, feed_forward_adapter = adapters
            x = attention_adapter(x)
        attended, log_map = self.attention(x, mask, want_map, corrections)
        x = self.attention_norm(x + self.dropout(attended))
        if adapters is not None:
            x = feed_forward_adapter(x)
        expanded = apply_linear(self.intermediate, x, corrections, "intermediate")    # (B, T, I)
        expanded = F.gelu(expanded)
        contracted = apply_linear(self.output, expanded, corrections, "output")       # (B, T, C)
        x = self.norm(x + self.dropout(contracted))
        return x, log_map


# {name of a correction: name of the matrix in a Layer to which it is added}. The correction of
# Attention's `output` is called "attention_output", because Layer has an `output`, too.
CORRECTED = {
    "query": "attention.query.weight",
    "key": "attention.key.weight",
    "value": "attention.value.weight",
    "attention_output": "attention.output.weight",
    "intermediate": "intermediate.weight",               # the feed-forward's first matrix
    "output": "output.weight",                           # the feed-forward's second matrix
}


class Head(nn.Module):
    """The parameters of BERT's masked-language-model head.

    A tied head has no decoder, that is, no output matrix of its own. It uses the word table, which
    belongs to Embeddings. So this class has no forward(): MiniALBERT.predict uses both modules.
    """

    def __init__(self, config):
        super().__init__()
        C = config.hidden_size
        V = config.vocab_size
        self.dense = nn.Linear(C, C)
        self.norm = LayerNorm(C, config.layer_norm_eps)
        self.decoder = None
        if not config.tie_decoder:
            self.decoder = nn.Linear(C, V, bias=False)
        self.bias = nn.Parameter(torch.zeros(V))


def split_evenly(num_items, num_groups):
    """Split items into groups of neighbours -> a list that says for each item in which group it is.

    split_evenly(6, 2) is [0, 0, 0, 1, 1, 1]: the items 0, 1 and 2 are group 0. If the number of
    items is not a multiple of the number of groups, some groups have one item more than others:
    split_evenly(8, 5) is [0, 0, 1, 1, 2, 3, 3, 4].
    """
    # i of the num_items items come before item i. The same share of the num_groups groups, rounded
    # down, comes before its group. In split_evenly(6, 2) item 3 is in group 3 * 2 // 6 = 1.
    return [i * num_groups // num_items for i in range(num_items)]


# The names of the lists in which a MiniALBERT keeps what each recursion has of its own. A new list
# also belongs in MiniALBERT.__init__, MiniALBERT.own_parts, keep_recursions and
# Config.has_own_parts. Decide whether merge_corrections and distill.start_from_teacher use it.
OWN_PARTS = ("attention_adapters", "feed_forward_adapters", "corrections")


class MiniALBERT(nn.Module):
    """G different layers, applied R times in all.

    head: whether the model has the head that predicts masked words
    """

    def __init__(self, config, head=True):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_groups))
        # These three lists are the OWN_PARTS; a list that is not needed is empty. Recursion r
        # applies attention_adapters[r] before attention and feed_forward_adapters[r] before the
        # feed-forward. It adds corrections[r] to the layer's matrices.
        self.attention_adapters = nn.ModuleList()
        self.feed_forward_adapters = nn.ModuleList()
        self.corrections = nn.ModuleList()
        for _ in range(config.num_hidden_layers):
            if config.adapter_size > 0:
                self.attention_adapters.append(Adapter(config))
                self.feed_forward_adapters.append(Adapter(config))
            if config.has_corrections:
                self.corrections.append(Corrections(config))
        self.head = None
        if head:
            self.head = Head(config)
        initialise(self)                                 # replaces all values set until now

    def layer_of_recursion(self, r):
        """Return the layer that recursion r applies.

        With R = 6 and G = 2 the recursions 0, 1 and 2 apply layer 0, and 3, 4 and 5 apply layer 1.
        """
        R = self.config.num_hidden_layers
        G = self.config.num_hidden_groups
        layer_numbers = split_evenly(R, G)               # one for each of the R recursions
        return self.layers[layer_numbers[r]]

    def own_parts(self, r):
        """Return what recursion r has of its own: its two adapters, or None, and its Corrections,
        or None."""
        adapters = None
        if self.config.adapter_size > 0:
            adapters = self.attention_adapters[r], self.feed_forward_adapters[r]
        corrections = None
        if self.config.has_corrections:
            corrections = self.corrections[r]
        return adapters, corrections

    def forward(self, ids, mask=None, segments=None, maps=()):
        """Run the encoder on the token numbers ids (B, T).

        mask: (B, T), True or 1 at real tokens, False or 0 at padding; None: no padding. The
            hidden states of a sequence without any real token mean nothing
        segments: (B, T) of 0 and 1; None: all 0
        maps: the recursions whose attention maps to return, counted from 0

        ValueError if the arguments do not fit together (see check_inputs), or if T is larger than
        max_position_embeddings.

        Returns
        hidden: a list of R + 1 tensors (B, T, C), the embeddings and the output of each recursion
        attention: {r: log-probabilities (B, H, T, T)} for each r in maps
        """
        maps = list(maps)                                # an iterator could be read only once
        check_inputs(self.config, ids, mask, segments, maps)
        if mask is not None:
            mask = mask.bool()[:, None, None, :]         # (B, 1, 1, T): no token looks at padding
        x = self.embeddings(ids, segments)               # (B, T, C)
        hidden = [x]
        attention = {}
        for r in range(self.config.num_hidden_layers):
            layer = self.layer_of_recursion(r)           # with G = 1 it is always the same layer
            adapters, corrections = self.own_parts(r)    # None for what it does not have
            want_map = r in maps
            x, log_map = layer(x, mask, want_map, adapters, corrections)
            hidden.append(x)
            if want_map:
                attention[r] = log_map
        return hidden, attention

    def predict(self, states):
        """Turn the last hidden states (M, C) of M places into logits over the vocabulary (M, V).

        The head turns each state into another vector of C numbers. The logit of a word is the dot
        product of this vector and the word's row of an output matrix, plus the word's bias. A tied
        head uses the word table as this matrix.
        Other leading dimensions work, too: (B, T, C) gives (B, T, V). ValueError if there is no
        head.
        """
        if self.head is None:
            raise ValueError("the model has no MLM head, so it cannot predict words")
        x = self.head.norm(F.gelu(self.head.dense(states)))                   # (M, C)
        if self.head.decoder is not None:                # the head is not tied
            output_matrix = self.head.decoder.weight     # (V, C)
        else:
            output_matrix = self.embeddings.word.weight  # (V, E)
            if self.embeddings.project is not None:
                # nn.Linear(E, C) stores its matrix as (C, E) and computes x @ weight.T. So
                # x @ weight goes from C to E. The bias of the projection is not used.
                x = x @ self.embeddings.project.weight   # (M, C) @ (C, E) -> (M, E)
        # This is x @ output_matrix.T + bias. Even a tied head has a bias of its own.
        return F.linear(x, output_matrix, self.head.bias)


@torch.no_grad()
def initialise(model, sharp=True):
    """Set the initial values.

    Weights are normal with standard deviation 0.02, biases are 0, the weights of LayerNorms are 1.
    Hugging Face's BERT starts like this, except that the row of [PAD] in its word table is 0.

    sharp: True makes the five changes that are numbered below. Only the first two are for sharp
        attention maps, in which a token looks more at some tokens than at others. False makes
        none of the five, so adapters and corrections, too, are random
    """
    if model.embeddings.word.weight.is_meta:
        return      # such tensors have no values (see checkpoint.model_without_values)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            nn.init.ones_(parameter)
        elif parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)
        else:
            nn.init.zeros_(parameter)
    if not sharp:
        return
    # 1. The weights of query and key become 4 times as large. A map is sharp if its scores differ
    # much. If the weights have the standard deviation s and the inputs have 1, then
    #   s * sqrt(C)  is the standard deviation of a number in a query or a key, a sum of C products
    #   s**2 * C     is that of the product of a query's number and a key's
    #   s**2 * C     is that of a score, too, a sum of D such products, divided by sqrt(D)
    # With s = 0.02 the scores have the standard deviation 0.05 if C is 128, and 0.3 if C is 768.
    # The first maps would be almost uniform. With s = 0.08, as here, they have 0.8 and 4.9.
    for layer in model.layers:
        layer.attention.query.weight.mul_(4)
        layer.attention.key.weight.mul_(4)
    # 2. The weights of the projection from E to C get the standard deviation 1 / sqrt(E). So its
    # output is about as large as its input, which comes from a LayerNorm. With 0.02 the output
    # would be small, and the first recursion's map would be almost uniform.
    if model.embeddings.project is not None:
        E = model.config.embedding_size
        model.embeddings.project.weight.mul_(E**-0.5 / 0.02)
    # 3. An adapter's `up` is 0, so that the adapter starts as the LayerNorm of its input. An input
    # that already comes from a LayerNorm is hardly changed by another one.
    for adapter in list(model.attention_adapters) + list(model.feed_forward_adapters):
        adapter.up.weight.zero_()
    # 4. A correction's `up` is 0, so that up @ down is 0 and the shared matrix is used unchanged.
    for corrections in model.corrections:
        for low_rank in corrections.values():
            low_rank.up.zero_()
    # 5. The position table holds sinusoids, so that the order of words is visible from the first
    # step. A row should have the root mean square 0.02, like the random numbers that it replaces.
    # Without a factor it would have 1 / sqrt(2), because sin**2 + cos**2 is 1 in each pair of
    # columns (if the width is even). So the sinusoids are multiplied by 0.02 * sqrt(2).
    num_positions, width = model.embeddings.position.weight.shape
    model.embeddings.position.weight.copy_(0.02 * 2**0.5 * sinusoids(num_positions, width))


def sinusoids(num_positions, width):
    """Compute the position encodings of Vaswani et al. 2017 -> (num_positions, width)."""
    position = torch.arange(num_positions)[:, None]      # (num_positions, 1)
    column = torch.arange(width)                         # (width,)
    even_column = column - column % 2                    # columns 2i and 2i + 1 have the same angle
    angle = position / 10000 ** (even_column / width)    # (num_positions, width)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos())


# ---- From here on: plumbing -------------------------------------------------------------

def keep_recursions(model, num_kept):
    """Cut a model, in place, to its first num_kept recursions and the layers that these apply.

    ValueError if the model has fewer recursions, or if no Config describes the shorter model. For
    example, 6 recursions with 2 layers apply the layers 0 0 0 1 1 1. The first 4 of them apply
    0 0 0 1, but a model of 4 recursions with 2 layers always applies 0 0 1 1 (see split_evenly).
    The first 5 can be kept: 0 0 0 1 1.
    """
    G = model.config.num_hidden_groups
    R = model.config.num_hidden_layers
    if not 1 <= num_kept <= R:
        raise ValueError(f"the model has {R} recursions, so {num_kept} of them cannot be kept")
    layer_numbers = split_evenly(R, G)[:num_kept]        # one for each recursion that is kept
    num_groups = layer_numbers[-1] + 1                   # the last number is the largest
    numbers_if_shorter = split_evenly(num_kept, num_groups)
    if numbers_if_shorter != layer_numbers:
        raise ValueError(f"the first {num_kept} of the model's {R} recursions apply the layers "
                         f"{layer_numbers}, but a model of {num_kept} recursions would apply "
                         f"{numbers_if_shorter}")
    model.config = replace(model.config, num_hidden_layers=num_kept,
                           num_hidden_groups=num_groups)
    model.layers = model.layers[:num_groups]
    model.attention_adapters = model.attention_adapters[:num_kept]
    model.feed_forward_adapters = model.feed_forward_adapters[:num_kept]
    model.corrections = model.corrections[:num_kept]


@torch.no_grad()
def merge_corrections(model):
    """Return a copy of a model in which each recursion has a layer of its own and no corrections.

    The layer of a recursion is the shared layer with the recursion's corrections added. The copy
    computes the same as the model and stores R layers. It is on the CPU and in float32.

    If the copy has no adapters, the library transformers can open what save() of checkpoint.py
    writes of it: as an AlbertModel if E differs from C, otherwise as a BertModel, which has no
    projection.
    """
    R = model.config.num_hidden_layers
    merged = copy.deepcopy(model).cpu().float()
    layers = nn.ModuleList()
    for r in range(R):
        layer = copy.deepcopy(merged.layer_of_recursion(r))
        if model.config.has_corrections:
            for name, name_in_layer in CORRECTED.items():
                layer.get_parameter(name_in_layer).add_(merged.corrections[r][name].matrix())
        layers.append(layer)
    merged.layers = layers
    merged.corrections = nn.ModuleList()
    merged.config = replace(model.config, num_hidden_groups=R, correction_rank=0)
    return merged.train(model.training)                  # a new ModuleList begins in training mode


def count_parameters(model):
    """Count a model's parameters: {part: number}.

    embeddings, layers, own_parts, head: the number of parameters in each part; own_parts are the
        adapters and corrections, which each recursion has of its own
    stored: the sum of the four parts
    body: stored without the head
    applied: stored, but a layer that is applied n times counts n times
    """
    model = getattr(model, "_orig_mod", model)           # torch.compile keeps the model there
    counts = {"embeddings": 0, "layers": 0, "own_parts": 0, "head": 0}
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        if part in OWN_PARTS:
            part = "own_parts"
        counts[part] += parameter.numel()
    stored = sum(counts.values())
    one_layer = counts["layers"] // model.config.num_hidden_groups
    counts["stored"] = stored
    counts["body"] = stored - counts["head"]
    counts["applied"] = stored - counts["layers"] + one_layer * model.config.num_hidden_layers
    return counts


def check_config(config):
    """Raise ValueError if a field of a Config is wrong or contradicts another one.

    If you add a field: a training run that began without it cannot be resumed. A field that changes
    what a model computes also belongs in
    - has_corrections, has_own_parts or is_bert
    - check_field, if it is an integer that may be 0, or if its type is not int, float or bool
    - read_config and save of checkpoint.py
    - SHAPE_FIELDS, add_model_flags, student_config and check_start of distill.py
    """
    for field in fields(config):
        check_field(field.name, field.type, getattr(config, field.name))
    if config.hidden_size % config.num_attention_heads != 0:
        raise ValueError(f"hidden_size {config.hidden_size} is not divisible by "
                         f"num_attention_heads {config.num_attention_heads}")
    if config.num_hidden_groups > config.num_hidden_layers:
        raise ValueError(f"num_hidden_groups {config.num_hidden_groups} is more than "
                         f"num_hidden_layers {config.num_hidden_layers}")
    if config.correction_rank > min(config.hidden_size, config.intermediate_size):
        raise ValueError(f"correction_rank {config.correction_rank} is more than hidden_size "
                         f"{config.hidden_size} or intermediate_size {config.intermediate_size}")


def check_field(name, kind, value):
    """Raise ValueError if a field of Config has a wrong type or is out of range.

    A config.json may come from anywhere, so the limits refuse the most absurd sizes, and the
    messages show at most 60 characters of a value (!r:.60).
    """
    if kind is bool:
        if type(value) is not bool:
            raise ValueError(f"{name} is {value!r:.60}, but must be true or false")
        return
    if kind is float:
        if type(value) not in (int, float) or not 0 <= value <= 1:
            raise ValueError(f"{name} is {value!r:.60}, but must be a number from 0 to 1")
        return
    # All other fields are integers.
    smallest = 1
    if name in ("adapter_size", "correction_rank"):
        smallest = 0                                     # 0 means: none
    largest = 2**24                                      # the limit of widths and tables
    if name in ("num_hidden_layers", "num_hidden_groups", "num_attention_heads"):
        largest = 2**10
    if type(value) is not int or not smallest <= value <= largest:
        raise ValueError(f"{name} is {value!r:.60}, but must be an integer from {smallest} to "
                         f"{largest}")


def check_inputs(config, ids, mask, segments, maps):
    """Raise ValueError if MiniALBERT.forward cannot use its arguments.

    It cannot if maps names a recursion that the model does not have, if ids is not (B, T), or if
    mask or segments has another shape than ids.
    """
    R = config.num_hidden_layers
    for r in maps:
        if r not in range(R):
            raise ValueError(f"maps: {r} is not a recursion; they are 0 to {R - 1}")
    if ids.ndim != 2:
        raise ValueError(f"ids is {list(ids.shape)}, not (B, T)")
    for name, tensor in [("mask", mask), ("segments", segments)]:
        if tensor is not None and tensor.shape != ids.shape:
            raise ValueError(f"{name} is {list(tensor.shape)}, ids is {list(ids.shape)}: they must "
                             "have the same shape")
