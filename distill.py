"""Distil a BERT teacher into a recursive student, as in the MiniALBERT paper
(arXiv 2210.06425).

    python distill.py
        This takes minutes: it uses the small teacher in assets/ and, as text, the
        documentation that is on this machine.
    python distill.py --teacher bert-base-uncased --corpus wiki/ --out out/mini
        This distils BERT-base on a GPU; on a CPU the default is --recipe quick.

MANUAL.md has the commands for several GPUs and for training a BERT from nothing.

The student learns to predict masked words and to imitate the teacher: its
attention maps, its hidden states and its output distributions.

    loss = 1 * MLM + 3 * attention + 10 * hidden + 5 * output + 2.5 * elastic

The last term is not in the paper. It is the output loss again, but after an
earlier recursion, which is drawn at random for each masked word. So the student
can also predict after fewer recursions.
"""
if __name__ == "__main__":
    # Ctrl-C is handled before the imports below, because they take seconds: see command.py.
    from command import end_at_interrupt
    end_at_interrupt()

import argparse
import ctypes
import hashlib
import json
import math
import os
import re
import shlex
import signal
import sys
import threading
import time
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from checkpoint import (claim_folder, expecting, fetch, load, model_without_values, naming_file,
                        restore_training_state, run_folder, save, save_training_state, write_json)
from command import (CommandParser, allow_only, given_flags, integer_from, is_about_memory,
                     one_line, path_name, printable, real_number, refuse_flags, run_command)
from data import (CACHE, RNG_DEPTHS, MaskedBatches, Tokenizer, check_out_is_outside, num_to_mask,
                  open_corpus)
from minialbert import (CORRECTED, Config, MiniALBERT, count_parameters, initialise,
                        merge_corrections, split_evenly)

# These are the weights of the losses; the embedding loss is only for ablations. The weight of the
# elastic loss depends on the recipe, and --recipe paper has the authors' weights: see RECIPES. If a
# weight changes, so must the text above and README. For a new loss see the comment at check_losses.
LOSS_WEIGHTS = {"mlm": 1.0, "attention": 3.0, "hidden": 10.0, "output": 5.0, "embedding": 0.0}
LOSS_NAMES = (*LOSS_WEIGHTS, "elastic")
LAYER_LOSSES = ("attention", "hidden")      # those that compare the pairs of match_layers
HEAD_LOSSES = ("mlm", "output", "elastic")  # those that need the MLM head of the student


# ---- The losses -------------------------------------------------------------------------
# README's losses are means over tokens or masked places. Here each loss function returns a sum, and
# Distillation.compute_losses divides it. The reason is that a batch may be cut into micro-batches,
# to save memory or to share it among processes. The sum of each micro-batch is divided by the
# number of tokens or masked places in the whole batch. So the losses and the gradients of the
# micro-batches add up to those of the whole batch (gradient accumulation).
#
# Under autocast logits and hidden states are bfloat16. They are cast to float32 by float(), because
# bfloat16 would be too coarse for the losses. Attention maps are float32 already.

def mlm_loss(logits, labels):
    """Compute the cross-entropy (nats) of logits (M, V) with true tokens (M,), summed over M."""
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def kl_divergence(student_log_probs, teacher_log_probs):
    """Compute KL(p || q) = sum of p (log p - log q) for each row, summed over all rows.

    p and q are the teacher's and the student's probabilities. Both arguments have the same shape.
    Because p does not change, the gradient is that of the cross-entropy, sum of -p log q. If p is 1
    for the true word and 0 for the others, this is mlm_loss.
    """
    # torch expects log q first: F.kl_div(log q, log p) is KL(p || q).
    return F.kl_div(student_log_probs, teacher_log_probs, reduction="sum", log_target=True)


def attention_loss(student_map, teacher_map):
    """Compare the attention maps of a recursion and a layer, log-probabilities (B, H, T, T).

    Row i of a map says where token i looks. The loss of a row is KL(p || q). Each token has H rows,
    one in the map of each head. The result is the mean over the heads, summed over the B * T
    tokens. Rows of padding would count, too; the batches of distill.py have no padding.
    """
    check_same_shape(student_map, teacher_map)
    H = student_map.shape[1]
    return kl_divergence(student_map, teacher_map) / H


def hidden_loss(student_states, teacher_states, mask=None):
    """Compare hidden states (B, T, C): 1 - cosine, summed over the B * T tokens.

    As in the authors' code only the directions are compared. EXPERIMENTS.md tries a squared error.

    mask (B, T): True at real tokens, which count, False at padding; None: no padding
    """
    check_same_shape(student_states, teacher_states)
    cosine = F.cosine_similarity(student_states.float(), teacher_states.float(), dim=-1)   # (B, T)
    distance = 1 - cosine
    if mask is not None:
        check_same_shape(distance, mask)
        distance = distance * mask
    return distance.sum()


def output_loss(student_logits, teacher_logits, temperature=1.0):
    """Compare predictions, logits (M, V): temperature^2 * KL(p || q), summed over the M places.

    A temperature above 1 flattens both distributions and makes the gradient smaller, by a factor of
    about temperature^2. So the divergence is multiplied by this factor (Hinton et al. 2015).
    """
    check_same_shape(student_logits, teacher_logits)
    if student_logits.dim() != 2:
        raise ValueError(f"logits have the shape {list(student_logits.shape)}, not (M, V)")
    student_log_probs = log_probabilities(student_logits, temperature)
    teacher_log_probs = log_probabilities(teacher_logits, temperature)
    return temperature**2 * kl_divergence(student_log_probs, teacher_log_probs)


def log_probabilities(logits, temperature):
    """Compute log softmax(logits / temperature) -> (M, V)."""
    logits = logits.float()
    if temperature != 1:                                 # dividing by 1 would only take memory
        logits = logits / temperature
    # Dimension 1 is the vocabulary. With -1, the same dimension, torch.compile would not see that
    # mlm_loss computes the student's log_softmax, too, and would compute it twice.
    return logits.log_softmax(1)


def teacher_layer_number(r, num_recursions, num_layers):
    """Return the number of the teacher's layer that recursion r corresponds to. Both count from 0.

    All recursions together stand for all layers, so each stands for num_layers / num_recursions
    layers. Recursion r corresponds to the last layer that it stands for, in whole or in part. The
    numbers of these layers for r = 0, 1, 2, ... are

        6 recursions, 12 layers:    1 3 5 7 9 11                (two layers each)
        12 recursions, 6 layers:    0 0 1 1 2 2 3 3 4 4 5 5     (half a layer each)
        4 recursions, 6 layers:     1 2 4 5                     (1.5 layers each)

    The teacher's layers are counted as it applies them. A teacher that shares layers has fewer in
    its list `layers`, so use teacher.layer_of_recursion(number), not teacher.layers[number].
    """
    # layers_done says how many layers the recursions 0 to r stand for. If it is 1.5, recursion r
    # ends inside the second layer. So it is rounded up, to 2. The second layer has the number 1.
    layers_done = (r + 1) * num_layers / num_recursions
    return math.ceil(layers_done) - 1


def match_layers(num_recursions, num_layers):
    """Pair recursions of a student with layers of its teacher: [(recursion, layer)], from 0.

    Usually each recursion learns from the layer that it corresponds to: with 6 recursions and 12
    layers, as in the paper, the pairs are (0, 1), (1, 3), ..., (5, 11). If several recursions
    correspond to one layer, only the last of them learns from it: with 12 recursions and 6 layers
    the pairs are (1, 0), (3, 1), ..., (11, 5). ValueError if neither number divides the other.
    """
    check_can_match_layers(num_recursions, num_layers)
    recursion_of_layer = {}
    for r in range(num_recursions):
        layer_number = teacher_layer_number(r, num_recursions, num_layers)
        recursion_of_layer[layer_number] = r             # a later recursion replaces an earlier one
    return [(r, layer_number) for layer_number, r in recursion_of_layer.items()]


def take_masked(states, positions):
    """Take the hidden states (b, T, C) of the masked places -> (m, C).

    positions (m,): the masked places in the b sequences of a micro-batch, as indices into the
        flattened ids
    """
    return states.flatten(0, 1)[positions]


def states_after(hidden, positions, depths):
    """Take the hidden state of each masked place after its own number of recursions -> (m, C).

    hidden: the list of states from MiniALBERT.forward: (b, T, C) after 0, 1, ..., R recursions
    positions (m,): see take_masked
    depths (m,): for each masked place the number of recursions, from 1 to R - 1
    """
    states_by_depth = []
    for states in hidden[1:-1]:                          # after 1, 2, ..., R - 1 recursions
        states_by_depth.append(take_masked(states, positions))                # (m, C)
    stacked = torch.stack(states_by_depth)               # (R - 1, m, C)
    # Place i needs stacked[depths[i] - 1, i], because stacked[0] is after one recursion. Indexing
    # with two tensors does this for all places at once.
    i = torch.arange(len(positions), device=positions.device)                 # 0, 1, ..., m - 1
    return stacked[depths - 1, i]                        # (m, C)


class Distillation:
    """The losses of a student on batches of masked text. The teacher, if any, is frozen.

    batches: a MaskedBatches, or anything with its .batch(step), .batch_size, .T and .seed; the text
        has no padding, so the models need no padding mask
    loss_weights: {name of a loss: its factor}; only these losses are computed. The names are those
        of LOSS_NAMES; "elastic" is the output loss after an earlier recursion, which is drawn at
        random for each masked place
    temperature: of the output loss and the elastic loss

    The other arguments are for memory and speed:
    micro_batch_size: sequences that go through the models at once; 0: batch_size divided by the
        number of processes. If this leaves a remainder, some processes need one more pass: see
        split_batch
    processes: a Processes, which says which process this is; None: it is the only one
    bf16: multiply matrices in bfloat16
    compile_losses: let torch.compile fuse the operations
    cuda_graphs: compile the losses so that a GPU starts all operations of a pass at once. This is
        only for batches that are a single micro-batch in this process, and in which each sequence
        has num_to_mask(T) masked places
    ValueError if a loss is not possible with these models, or if the temperature is not above 0.
    """

    def __init__(self, student, teacher, batches, loss_weights, temperature=1.0, micro_batch_size=0,
                 processes=None, bf16=False, compile_losses=False, cuda_graphs=False):
        check_losses(student, teacher, loss_weights)
        if temperature <= 0:
            raise ValueError(f"the temperature is {temperature}, but it must be above 0")
        if teacher is not None:
            teacher.requires_grad_(False)
            teacher.eval()                               # its dropout stays off
        self.student = student
        self.teacher = teacher
        self.batches = batches
        self.loss_weights = loss_weights
        self.temperature = temperature
        self.tokens_per_step = batches.batch_size * batches.T
        self.needs_teacher = any(name != "mlm" for name in loss_weights)
        self.pairs = []                                  # (student's recursion, teacher's layer)
        if any(name in LAYER_LOSSES for name in loss_weights):
            self.pairs = match_layers(student.config.num_hidden_layers,
                                      teacher.config.num_hidden_layers)
        self.recursions_with_map = []                    # those whose maps the student returns
        self.layers_with_map = []                        # those whose maps the teacher returns
        if "attention" in loss_weights:
            self.recursions_with_map = [r for r, _ in self.pairs]
            self.layers_with_map = [layer_number for _, layer_number in self.pairs]
        # What follows is for memory and speed.
        self.bf16 = bf16
        self.micro_batch_bounds = split_batch(batches.batch_size, micro_batch_size, processes)
        # choose_losses_function takes losses_function or graph_function for each batch.
        self.losses_function = self.compute_losses
        if compile_losses:
            self.losses_function = torch.compile(self.compute_losses)
        self.graph_function = None
        # A CUDA graph writes its results, the gradients too, to the same memory each time. So the
        # gradients of a micro-batch would be lost when the next one begins.
        if cuda_graphs and len(self.micro_batch_bounds) == 1:
            self.graph_function = torch.compile(self.compute_losses,
                                                options={"triton.cudagraphs": True})

    def compute_losses(self, ids, positions, labels, depths, divisor):
        """Compute a micro-batch's part of each loss: {name: scalar}.

        The micro-batch has b of the batch's B sequences and m of its M masked places.

        ids (b, T): the masked text
        positions (m,): the masked places, indices into the flattened ids
        labels (m,): the true tokens there
        depths (m,): for each masked place the number of recursions after which the elastic loss
            uses the state of this place
        divisor: M, the number of masked places in the whole batch, but at least 1
        """
        # attention is a dict {recursion: map (b, H, T, T)}; it has only the maps asked for.
        hidden, attention = self.student(ids, maps=self.recursions_with_map)
        if self.needs_teacher:
            # The teacher's parameters are frozen, so no gradient is computed for it, even without
            # torch.no_grad().
            teacher_hidden, teacher_attention = self.teacher(ids, maps=self.layers_with_map)

        # Words are predicted at the masked places alone: at the other places the models see them.
        if "mlm" in self.loss_weights or "output" in self.loss_weights:
            masked_states = take_masked(hidden[-1], positions)                # (m, C)
            logits = self.student.predict(masked_states)                      # (m, V)
        if "output" in self.loss_weights or "elastic" in self.loss_weights:
            teacher_states = take_masked(teacher_hidden[-1], positions)       # (m, C)
            teacher_logits = self.teacher.predict(teacher_states)             # (m, V)

        losses = {}
        if "mlm" in self.loss_weights:
            losses["mlm"] = mlm_loss(logits, labels) / divisor
        # The attention and the hidden loss are sums over the pairs (recursion, layer). Each pair's
        # part is a mean over the tokens.
        if "attention" in self.loss_weights:
            total = 0.0
            for r, layer_number in self.pairs:
                total = total + attention_loss(attention[r], teacher_attention[layer_number])
            losses["attention"] = total / self.tokens_per_step
        if "hidden" in self.loss_weights:
            # hidden[0] holds the embeddings, so hidden[r + 1] is the output of recursion r.
            total = 0.0
            for r, layer_number in self.pairs:
                total = total + hidden_loss(hidden[r + 1], teacher_hidden[layer_number + 1])
            losses["hidden"] = total / self.tokens_per_step
        if "output" in self.loss_weights:
            divergence = output_loss(logits, teacher_logits, self.temperature)
            losses["output"] = divergence / divisor
        if "elastic" in self.loss_weights:
            earlier_states = states_after(hidden, positions, depths)          # (m, C)
            earlier_logits = self.student.predict(earlier_states)             # (m, V)
            divergence = output_loss(earlier_logits, teacher_logits, self.temperature)
            losses["elastic"] = divergence / divisor
        if "embedding" in self.loss_weights:
            losses["embedding"] = hidden_loss(hidden[0], teacher_hidden[0]) / self.tokens_per_step
        return losses

    def losses_of_micro_batches(self, step):
        """Yield the losses {name: scalar} of each micro-batch of this process in a step.

        Each loss, added up over the micro-batches of all processes, is that of the whole batch.
        """
        # These are numpy arrays of the whole batch. Below, to_device makes tensors of their parts.
        ids, positions, labels = self.batches.batch(step)     # (B, T), (M,), (M,)
        check_batch_shape(ids, self.batches, step)
        M = len(positions)                               # masked places in the whole batch
        depths = self.draw_depths(step, M)               # (M,)
        divisor = max(1, M)                              # so that a loss is 0 / 1, not 0 / 0
        compute = choose_losses_function(self, M)        # compute_losses, perhaps compiled
        device = device_of(self.student)
        for begin, end in self.micro_batch_bounds:       # usually one, the whole batch
            parts = cut_micro_batch(begin, end, ids, positions, labels, depths)
            micro_batch = to_device(device, *parts)      # (b, T), (m,), (m,), (m,)
            with autocast(device, self.bf16):
                losses = compute(*micro_batch, divisor)
            yield losses

    def draw_depths(self, step, M):
        """Draw a depth for each masked place -> (M,).

        A depth is the number of recursions, from 1 to R - 1, after which the elastic loss uses the
        hidden state of its place. (If R is 1, all depths are 1, and no loss uses them.) A place
        gets only one depth, because to predict after each of the R - 1 earlier recursions would be
        R - 1 times the work. Like the batch, the depths depend on the seed and the step alone.
        """
        R = self.student.config.num_hidden_layers
        rng = np.random.default_rng([self.batches.seed, RNG_DEPTHS, step])
        return rng.integers(1, max(2, R), size=M)


# ---- Initialising the student from the teacher ------------------------------------------

@torch.no_grad()
def start_from_teacher(student, teacher, ids):
    """Initialise the student from the teacher, which is in eval mode.

    ids (B, T): sample text. If it has fewer than 4 * E tokens, where E is the width of the
        student's embeddings, these embeddings start badly

    The functions below say how each part starts; the student's adapters keep their present values.
    If the teacher has corrections, they are first added to its matrices. Its adapters are not used.
    ValueError if check_start refuses the teacher, or if its weights are so large that the
    embeddings or the corrections cannot be computed.
    """
    check_start(student, teacher)
    if teacher.config.has_corrections:
        teacher = merge_corrections(teacher)             # now it has a layer for each recursion
    start_embeddings(student.embeddings, teacher.embeddings, ids)
    start_layers(student, teacher)
    start_corrections(student, teacher)
    if student.head is not None and teacher.head is not None:
        start_head(student, teacher)


def start_embeddings(student_embeddings, teacher_embeddings, ids):
    """Fill the student's Embeddings, whose tables have the width E, from the teacher's Embeddings.

    1. The student's tables become the teacher's, projected onto E directions. These directions keep
       as much as possible of the sums word + position + segment, which the teacher computes for the
       sample ids (B, T).
    2. The projection from E to C is fitted by least squares, so that the student's output for these
       ids is close to the teacher's.

    If the teacher's tables have the width E already, its embeddings are copied as they are instead.
    In the shapes below, the teacher's tables have the width C, as a BERT's do.
    """
    if student_embeddings.word.embedding_dim == teacher_embeddings.word.embedding_dim:
        student_embeddings.load_state_dict(teacher_embeddings.state_dict())
        return                                           # there is nothing to factorise
    T = ids.shape[1]
    E = student_embeddings.word.embedding_dim
    # 1. The tables
    word = teacher_embeddings.word(ids)                  # (B, T, C)
    position = teacher_embeddings.position.weight[:T]    # (T, C)
    segment = teacher_embeddings.segment.weight[0]       # (C,)
    teacher_sums = (word + position + segment).flatten(0, 1)      # (N, C) for N = B * T tokens
    basis = principal_directions(teacher_sums, E)        # (C, E)
    student_embeddings.word.weight.copy_(teacher_embeddings.word.weight @ basis)
    student_embeddings.position.weight.copy_(teacher_embeddings.position.weight @ basis)
    student_embeddings.segment.weight.copy_(teacher_embeddings.segment.weight @ basis)

    # 2. The projection. The student computes project(LayerNorm(student_sums)), and a BERT computes
    # LayerNorm(teacher_sums). Without the LayerNorms basis.T (E, C) would be the best matrix of
    # the projection: no student_sums @ matrix is closer to teacher_sums. With them the projection
    # has to be fitted. The student's LayerNorm keeps its first values, weights 1 and biases 0.
    student_sums = teacher_sums @ basis                  # (N, E): its word + position + segment
    projection_inputs = student_embeddings.norm(student_sums)                 # (N, E)
    teacher_outputs = teacher_embeddings(ids).flatten(0, 1)                   # (N, C)
    fit_linear(student_embeddings.project, projection_inputs, targets=teacher_outputs)


def principal_directions(vectors, E):
    """Find the E directions -> (C, E) that keep as much as possible of vectors (N, C).

    This is a principal component analysis in which the mean is not subtracted. The directions, the
    columns of the result, are the eigenvectors of vectors.T @ vectors with the E largest
    eigenvalues.

    The sign of a direction is arbitrary, and another linear algebra library may return the opposite
    one. This changes a little with which outputs the student starts, because its LayerNorm
    subtracts the mean of the E numbers, which depends on the signs.
    """
    moments = vectors.T @ vectors                        # (C, C)
    if not moments.isfinite().all():
        raise ValueError("the teacher's embeddings are too large to compute with")
    _, eigenvectors = torch.linalg.eigh(moments)
    return eigenvectors[:, -E:]                          # eigh puts the largest eigenvalues last


def fit_linear(linear, inputs, targets):
    """Fit a linear layer by least squares, so that for inputs (N, E) its outputs are close to the
    targets (N, C). All of these must be on the CPU, as both models are when a student starts."""
    # lstsq fits a matrix but no bias. So each row of the inputs gets a 1 at its end. The row of the
    # solution that is multiplied by this 1 is the bias.
    ones = inputs.new_ones(len(inputs), 1)
    inputs_and_one = torch.cat([inputs, ones], dim=1)    # (N, E + 1)
    # The inputs come from a fresh LayerNorm, so each row of them sums to 0, and their columns are
    # linearly dependent. The driver gelsd allows this; it exists only on the CPU.
    solution = torch.linalg.lstsq(inputs_and_one, targets, driver="gelsd").solution    # (E + 1, C)
    linear.weight.copy_(solution[:-1].T)                 # nn.Linear has the shape (C, E)
    linear.bias.copy_(solution[-1])


def start_layers(student, teacher):
    """Start each of the student's G layers as a mean of layers of the teacher.

    Each layer of the student replaces some neighbouring layers of the teacher. It starts as the
    mean of the middle ones: the first and the last quarter, rounded down, are left out. Of 4 layers
    only the second and the third are used, of 3 all. EXPERIMENTS.md compares other starts.
    """
    L = teacher.config.num_hidden_layers                 # layers of the teacher
    G = student.config.num_hidden_groups
    # For each of the teacher's layers this is the student's layer that replaces it. For L = 7 and
    # G = 2 it is [0, 0, 0, 0, 1, 1, 1].
    replaced_by = split_evenly(L, G)
    for g, layer in enumerate(student.layers):
        replaced = [i for i in range(L) if replaced_by[i] == g]
        quarter = len(replaced) // 4
        middle = replaced[quarter:len(replaced) - quarter]
        teacher_layers = [teacher.layer_of_recursion(i) for i in middle]
        for name, parameter in layer.named_parameters():
            tensors = [teacher_layer.get_parameter(name) for teacher_layer in teacher_layers]
            parameter.copy_(sum(tensors) / len(tensors))


def start_corrections(student, teacher):
    """Start each correction so that shared matrix + correction is close to the teacher's matrix.

    The teacher's layer is the one that the recursion corresponds to (see teacher_layer_number). The
    correction is the matrix of rank K that is nearest to the difference of the two matrices.
    """
    R = student.config.num_hidden_layers
    L = teacher.config.num_hidden_layers                 # layers of the teacher
    K = student.config.correction_rank
    bar = progress_bar(student.corrections, desc="starting the student", delay=5, leave=False)
    for r, corrections in enumerate(bar):
        shared_layer = student.layer_of_recursion(r)
        teacher_layer = teacher.layer_of_recursion(teacher_layer_number(r, R, L))
        for name, name_in_layer in CORRECTED.items():
            shared = shared_layer.get_parameter(name_in_layer)
            difference = teacher_layer.get_parameter(name_in_layer) - shared
            low_rank = corrections[name]
            if difference.any():
                up, down = nearest_of_rank(K, difference)
                low_rank.up.copy_(up)
                low_rank.down.copy_(down)
            else:
                # The shared matrix is the teacher's already, so the correction has to be 0. If down
                # were 0, too, the gradients of both would be 0, and the correction could never
                # change. So down keeps its random values.
                low_rank.up.zero_()


def nearest_of_rank(K, matrix):
    """Find the matrix of rank K that is nearest to a matrix (num_out, num_in), as two factors -> up
    (num_out, K), down (K, num_in).

    It keeps the K largest singular values. Each factor is multiplied by their square roots.
    """
    if not matrix.isfinite().all():
        raise ValueError("the teacher's layers are too large to compute with")
    # The matrix is left @ diag(singular_values) @ right; the largest value is first.
    left, singular_values, right = torch.linalg.svd(matrix, full_matrices=False)
    root = singular_values[:K].sqrt()                    # (K,)
    up = left[:, :K] * root
    down = root[:, None] * right[:K]
    return up, down


def start_head(student, teacher):
    """Copy the teacher's MLM head to the student.

    If only the student's head is untied, its decoder is made of the teacher's embeddings. If only
    the teacher's head is untied, the teacher's decoder is not used.
    """
    student.head.dense.load_state_dict(teacher.head.dense.state_dict())
    student.head.norm.load_state_dict(teacher.head.norm.state_dict())
    student.head.bias.copy_(teacher.head.bias)
    if student.head.decoder is None:
        return
    if teacher.head.decoder is not None:
        decoder = teacher.head.decoder.weight            # (V, C)
    else:
        decoder = teacher.embeddings.word.weight         # (V, E)
        if teacher.embeddings.project is not None:
            decoder = decoder @ teacher.embeddings.project.weight.T           # (V, C)
    student.head.decoder.weight.copy_(decoder)


# ---- The training loop; finetune.py uses it, too ----------------------------------------

# A gradient whose norm is above this is scaled down to this norm. In the run that README shows, the
# norms in the log are from 15 to 39. So all gradients are scaled down, and each counts as much as
# the others in AdamW's running means.
MAX_GRADIENT_NORM = 1.0


class StepResult(NamedTuple):
    """What training_step returns."""
    totals: dict                    # the losses {name: tensor}, with their weighted sum as "loss"
    lr: float                       # the learning rate
    gradient_norm: torch.Tensor     # before clipping; Recorder.after_step checks that it is finite


def training_step(model, objective, optimizer, step, options, processes):
    """Make one step: forward, backward, update -> StepResult.

    model: a module with all that is trained: in distillation the student, or an nn.ModuleList of
        the student and whatever else is to be trained with it
    objective: a Distillation, or anything with its .loss_weights and .losses_of_micro_batches(step)
    step: its number, counted from 0
    options: a TrainingOptions, which has the learning rate, the number of steps and the seed
    processes: a Processes, which says which process this is and how many there are

    The gradients must be empty before the step, and they are empty after it. The step seeds torch's
    random numbers.
    """
    seed_dropout(options.seed, step, processes)
    model.train()
    totals = {"loss": 0.0}                               # sums over the micro-batches
    for name in objective.loss_weights:
        totals[name] = 0.0
    # Each iteration makes one forward pass: losses_of_micro_batches is a generator, which computes
    # the losses of a micro-batch when the loop asks for them. Usually there is one micro-batch.
    for losses in objective.losses_of_micro_batches(step):
        loss = 0.0
        for name, value in losses.items():
            loss = loss + objective.loss_weights[name] * value
            totals[name] += value.detach()               # for the log
        totals["loss"] += loss.detach()
        loss.backward()                                  # adds to the gradients
    sum_over_processes(model, totals, processes)

    gradient_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
    lr = learning_rate(step, options)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(totals, lr, gradient_norm)


def learning_rate(step, options):
    """Return the learning rate of a step, counted from 0. During the warm-up it grows linearly from
    lr / warmup to lr. Then it falls linearly from lr. In the last step it is lr / (steps - warmup).
    """
    if step < options.warmup:
        share = (step + 1) / options.warmup              # the last step of the warm-up has 1
    else:
        share = (options.steps - step) / (options.steps - options.warmup)
    return options.lr * share


def make_optimizer(model, weight_decay):
    """Make AdamW for all parameters that are trained; biases and LayerNorms do not decay. The betas
    are 0.9 and 0.999, and eps is 1e-8, as is usual in torch.

    Another optimiser, too, must have its state before the first step: --resume copies into it what
    the checkpoint holds. Most optimisers make it in their first step, which would be too late.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay},
              {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, fused=True)
    make_optimizer_state(optimizer, trained)
    return optimizer


def train(objective, run_state, options, evaluate_model, save_model, processes):
    """Train run_state.model with AdamW for options.steps steps, and write checkpoints and a log.

    objective: see training_step; it also has .tokens_per_step
    run_state: what begin_or_resume returned
    evaluate_model(): returns {name: value} for the log, {} if the model cannot be measured. It is
        called in the first process alone, so it must not wait for the others. If a value is to end
        the training, say, broadcast this decision to them, as choose_rate of finetune.py does
    save_model(): writes the model; it is called after each checkpoint of the training state, and at
        the beginning of a resumed run

    A run that was stopped or killed and then resumed ends like a run without a break; on a CPU the
    two are bit for bit equal. A checkpoint needs only the parameters, AdamW's state and the number
    of steps done. All else in a step follows from its number, and not from the steps before it: its
    batch, the masked places, the dropout and the learning rate.

    At SIGINT, SIGTERM or SIGHUP the step is finished and a checkpoint is written. Then SystemExit
    ends the program. Several processes all stop after the same step: see must_stop.
    """
    recorder = Recorder(objective, run_state, options, evaluate_model, save_model, processes)
    recorder.before_first_step()
    model = run_state.model
    model.zero_grad(set_to_none=True)                    # each step adds to the gradients
    with noted_signals() as signals:
        bar = progress_bar(range(run_state.first_step, options.steps))
        for step in bar:                                 # from 0; the log and messages count from 1
            result = training_step(model, objective, run_state.optimizer, step, options, processes)
            # This logs, evaluates and saves, each if it is due. After a signal it ends the program.
            recorder.after_step(step + 1, result, signals, bar)


# ---- From here on: plumbing -------------------------------------------------------------

# ---- Checks of models and tensors -------------------------------------------------------

def check_same_shape(first, second):
    """Raise ValueError if two shapes differ. Without this torch might repeat the smaller tensor."""
    if first.shape != second.shape:
        raise ValueError(f"the shapes {list(first.shape)} and {list(second.shape)} must be equal")


def can_match_layers(num_recursions, num_layers):
    """Return True if one of the two numbers divides the other."""
    return num_layers % num_recursions == 0 or num_recursions % num_layers == 0


def check_can_match_layers(num_recursions, num_layers):
    """Raise ValueError if neither of the two numbers divides the other."""
    if not can_match_layers(num_recursions, num_layers):
        divisors = [n for n in range(1, num_layers + 1) if num_layers % n == 0]
        raise ValueError(f"{num_recursions} recursions cannot be spread evenly over the "
                         f"teacher's {num_layers} layers. Give a fresh student {divisors} or a "
                         f"multiple of {num_layers} (--num-hidden-layers), or leave out the losses "
                         "that compare layers (--attention-weight 0 --hidden-weight 0)")


# A new loss needs a weight in LOSS_WEIGHTS, its lines in Distillation.compute_losses and its help
# in add_loss_flags. compute_losses must divide its sum by a number of the whole batch: divisor,
# tokens_per_step or, if it has one value for each sequence, batches.batch_size. A mean over a
# micro-batch would be wrong as soon as there are several micro-batches or processes. A new loss may
# also belong in LAYER_LOSSES or HEAD_LOSSES. If it needs models of equal size, check_losses should
# check this. If it needs attention maps, Distillation must ask for them (recursions_with_map). If
# it has parameters of its own, begin_or_resume must get them beside the student: see training_step.
# Otherwise they would never change.

def check_losses(student, teacher, loss_weights):
    """Raise ValueError if a loss is not possible with these models. teacher may be None."""
    for name in loss_weights:
        if name not in LOSS_NAMES:
            raise ValueError(f"loss_weights has {name!r}, but the losses are "
                             f"{', '.join(LOSS_NAMES)}")
    if not loss_weights:
        raise ValueError("no loss is left: each has the weight 0 or is not possible with this "
                         "teacher")
    if teacher is None:
        if set(loss_weights) != {"mlm"}:
            raise ValueError("without a teacher the only loss is mlm, but loss_weights has "
                             f"{', '.join(loss_weights)}")
        return
    compares_predictions = "output" in loss_weights or "elastic" in loss_weights
    if compares_predictions:
        if teacher.head is None:
            raise ValueError("the output and the elastic loss need a teacher with an MLM head")
        check_same_field(student, teacher, "vocab_size", "--output-weight 0 --elastic 0")
    if "elastic" in loss_weights and student.config.num_hidden_layers == 1:
        raise ValueError("the elastic loss needs a student of more than one recursion")
    if any(name in LAYER_LOSSES for name in loss_weights):
        check_can_match_layers(student.config.num_hidden_layers,
                               teacher.config.num_hidden_layers)
    if "hidden" in loss_weights or "embedding" in loss_weights:
        check_same_field(student, teacher, "hidden_size",
                         "--hidden-weight 0 --embedding-weight 0")
    if "attention" in loss_weights:
        check_same_field(student, teacher, "num_attention_heads", "--attention-weight 0")


def check_start(student, teacher):
    """Raise ValueError if the student cannot start from this teacher."""
    for field in ("hidden_size", "num_attention_heads", "intermediate_size", "vocab_size",
                  "max_position_embeddings", "type_vocab_size"):
        check_same_field(student, teacher, field, "--init sharp")
    G = student.config.num_hidden_groups
    L = teacher.config.num_hidden_layers                 # layers of the teacher
    if G > L:
        raise ValueError(f"--num-hidden-groups {G}: the teacher has only {L} layers; use --init "
                         "sharp")
    E = student.config.embedding_size
    teacher_E = teacher.config.embedding_size
    if E > teacher_E:
        raise ValueError(f"--embedding-size {E}: the teacher's is only {teacher_E}; use --init "
                         "sharp")
    if E < teacher_E and student.embeddings.project is None:
        raise ValueError(f"--embedding-size {E}: this is the student's hidden_size, so it has no "
                         "projection, and the teacher's embeddings cannot be factorised; use "
                         "--init sharp")


def check_same_field(student, teacher, field, flags):
    """Raise ValueError if a field differs in the two Configs. flags: those that allow this, for the
    message"""
    in_teacher = getattr(teacher.config, field)
    in_student = getattr(student.config, field)
    if in_teacher != in_student:
        raise ValueError(f"{field} of the teacher is {in_teacher}, of the student {in_student}; "
                         f"to allow this, say {flags}")


# ---- Micro-batches, bfloat16 and CUDA graphs --------------------------------------------

def split_batch(batch_size, micro_batch_size, processes):
    """List the micro-batches of this process: [(first sequence, one past the last), ...].

    For example, 11 sequences among 4 processes are cut into micro-batches of 11 // 4 = 2, which the
    processes take in turn: process 0 has (0, 2) and (8, 10), process 1 has (2, 4) and (10, 12),
    process 2 has (4, 6), and process 3 has (6, 8). (10, 12) ends beyond the batch. Slicing ignores
    the sequence that is not there. If micro_batch_size is not 0, no micro-batch has more sequences
    than that.
    """
    if processes is None:
        processes = Processes()
    size = batch_size // processes.world_size
    if micro_batch_size > 0:
        size = min(size, micro_batch_size)
    first = processes.rank * size                        # where this process begins
    distance = processes.world_size * size               # from there to its next micro-batch
    begins = range(first, batch_size, distance)
    return [(begin, begin + size) for begin in begins]


def check_batch_shape(ids, batches, step):
    """Raise ValueError if ids is not (B, T). Sequences beyond B would not be used."""
    shape = (batches.batch_size, batches.T)
    if ids.shape != shape:
        raise ValueError(f"the batch of step {step} has the shape {ids.shape}, but batch_size "
                         f"and T of the batches say {shape}")


def choose_losses_function(distillation, M):
    """Return the function that computes a Distillation's losses of a batch with M masked places.

    A CUDA graph is made for one shape of each tensor and for one number of masked places in the
    whole batch. This is the usual number: num_to_mask(T) in each sequence. A sequence in which most
    tokens are special, such as [UNK], may have fewer. Then no process uses the graph for the batch.
    """
    batches = distillation.batches
    usual_number = batches.batch_size * num_to_mask(batches.T)
    if distillation.graph_function is not None and M == usual_number:
        return distillation.graph_function
    return distillation.losses_function


def cut_micro_batch(begin, end, ids, positions, labels, depths):
    """Take the sequences from begin to end - 1 of a batch, and what belongs to their masked places.

    The four arrays are (B, T), (M,), (M,) and (M,) for the batch. Those that are returned are
    (b, T), (m,), (m,) and (m,) for the micro-batch.
    """
    T = ids.shape[1]
    is_inside = (begin * T <= positions) & (positions < end * T)              # (M,)
    # The first of these sequences starts at begin * T in the flattened ids of the batch, but at 0
    # in those of the micro-batch.
    shifted_positions = positions[is_inside] - begin * T                      # (m,)
    return ids[begin:end], shifted_positions, labels[is_inside], depths[is_inside]


def device_of(model):
    """Return the device on which a model's parameters are."""
    return next(model.parameters()).device


def to_device(device, *arrays):
    """Turn numpy arrays into tensors on a device -> a list. On a CPU they share the arrays' memory.

    A copy from pinned memory to a CUDA GPU runs in the background: the program does not wait for
    it. For other devices the program waits, so that the array is not freed before the copy ends.
    """
    in_background = device.type == "cuda"
    tensors = []
    for array in arrays:
        tensor = torch.from_numpy(array)
        if in_background:
            tensor = tensor.pin_memory()
        tensors.append(tensor.to(device, non_blocking=in_background))
    return tensors


def autocast(device, bf16):
    """Return a context manager in which matrices are multiplied in bfloat16, if bf16 is True."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def cast_linear_layers(model):
    """Cast the weights and biases of a frozen model's linear layers to bfloat16, once. Without this
    autocast would do it in each step."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.to(torch.bfloat16)


# ---- The options and the state of a run -------------------------------------------------

@dataclass
class TrainingOptions:
    """Options of train(); the help of the flags with the same names explains them."""
    steps: int
    lr: float
    warmup: int
    weight_decay: float
    seed: int
    log_every: int
    eval_every: int         # 0: only after the last step
    save_every: int
    out: str
    resume: bool

    def settings(self):
        """Return the options that must be the same in a resumed run, {name: value}: all that change
        what is trained. A run of an earlier version does not have a new option, so it is resumed
        with any value of it."""
        may_differ = ("log_every", "eval_every", "save_every", "out", "resume")
        return {name: value for name, value in vars(self).items() if name not in may_differ}


def make_optimizer_state(optimizer, trained):
    """Give AdamW its state for the trained parameters: two running means and a count for each.

    It is what torch itself would make at the first step. It is made here, so that it can be
    restored before the first step. ValueError if a parameter has gaps in memory.
    """
    for parameter in trained:
        # A part of a larger matrix, such as matrix[:, :3], has gaps between its rows. On a CPU
        # AdamW (fused) takes the numbers as they stand in memory, so it would also change what is
        # in the gaps, without an error. zeros_like makes a tensor without gaps.
        exp_avg = torch.zeros_like(parameter)
        if exp_avg.stride() != parameter.stride():
            raise ValueError(f"a parameter of shape {list(parameter.shape)} is a part of a larger "
                             "tensor; make it of a copy, nn.Parameter(part.clone())")
        optimizer.state[parameter] = {
            "exp_avg": exp_avg,
            "exp_avg_sq": torch.zeros_like(parameter),
            "step": torch.zeros((), device=parameter.device)}


class RunState(NamedTuple):
    """The state of a run that is about to begin or to go on."""
    model: nn.Module        # all that is trained: see training_step
    optimizer: torch.optim.Optimizer
    first_step: int         # the next step, counted from 0, which is also the number of steps done
    log_size: int           # bytes that log.jsonl had after the steps done
    settings: dict          # what must be the same when the run is resumed; checkpoints hold it


def begin_or_resume(model, options, settings, processes):
    """Prepare a run. If options.resume is True, restore what its last checkpoint holds.

    model: a module with all that is trained: see training_step
    settings: a dict of what must be the same in a resumed run and in the run that it continues
    Returns a RunState. If the run goes on, the model then has the parameters of the checkpoint.
    ValueError if a run cannot be resumed, because its folder has a model, but no checkpoint.
    """
    optimizer = make_optimizer(model, options.weight_decay)
    tensors = training_state(model, optimizer)
    first_step = 0
    log_size = 0
    # Only the first process reads the checkpoint: the others may be on machines without the file.
    # broadcast() sends them first_step and the tensors. They need no log_size, because only the
    # first process writes the log.
    if options.resume and processes.rank == 0:
        first_step, log_size = restore_last_checkpoint(tensors, options, settings)
    step_tensor = torch.tensor(first_step, device=processes.device)
    broadcast([step_tensor, *tensors.values()], processes)
    return RunState(model, optimizer, step_tensor.item(), log_size, settings)


def training_state(model, optimizer):
    """Collect all tensors that training changes: {key: tensor}.

    The keys are "model.NAME" for the parameter NAME, and "exp_avg.NAME", "exp_avg_sq.NAME" and
    "step.NAME" for its state in AdamW. (The size of an update depends on AdamW's number of steps,
    so this is saved, too.) The tensors are those in use, not copies. So a run is restored by
    copying into them. If a step changes more, such as a buffer of the model or a moving average of
    its weights, add it here.

    A frozen parameter is left out, so no process gets its value from rank 0 or from a checkpoint.
    It is safe to freeze what load() has read. What start_from_teacher has computed is not safe: the
    values may differ on another machine.
    """
    state = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            state[f"model.{name}"] = parameter
            for key, tensor in optimizer.state[parameter].items():
                state[f"{key}.{name}"] = tensor
    return state


def restore_last_checkpoint(tensors, options, settings):
    """Copy the last checkpoint, if there is one, into the tensors of training_state. Print where
    the run goes on. Return the number of steps done and the bytes that the log had then; without a
    checkpoint both are 0.

    settings, and ValueError: see begin_or_resume
    """
    path = checkpoint_path(options)
    if os.path.exists(path):
        steps_done, log_size = restore_training_state(path, tensors, settings)
        if steps_done < options.steps:
            print(f"{options.out}: going on after step {steps_done:,} of {options.steps:,}")
        else:
            print(f"{options.out}: all {options.steps:,} steps are done already")
        return steps_done, log_size
    if os.path.exists(os.path.join(options.out, "model.safetensors")):
        # A run writes a checkpoint before its model. This folder has a model without one, so
        # somebody has removed the checkpoint.
        raise ValueError(f"--resume: {path} is missing, so the run in {options.out} cannot go on; "
                         "--overwrite starts anew and loses its model. A new run with another "
                         "--out can begin with this model: distill.py --student, finetune.py "
                         "--model")
    if os.path.exists(os.path.join(options.out, "log.jsonl")):
        print(f"--resume: the run in {options.out} has no checkpoint, so it starts at step 1")
    return 0, 0


def checkpoint_path(options):
    """Return the path of the checkpoint from which a run goes on."""
    return os.path.join(options.out, "training.safetensors")


# ---- What is done after a step ----------------------------------------------------------

class Recorder:
    """What train() does beside the steps: it writes the log and the checkpoints, and it ends the
    program after a signal.

    The arguments are those of train(). If another file is written here, its name also belongs in
    TRAINING_FILES of checkpoint.py. Otherwise --overwrite leaves it in the folder. If the file
    grows during the run, before_first_step must cut off what the last checkpoint does not know.
    """

    def __init__(self, objective, run_state, options, evaluate_model, save_model, processes):
        self.objective = objective
        self.run_state = run_state
        self.options = options
        self.evaluate_model = evaluate_model
        self.save_model = save_model
        self.processes = processes
        self.is_main = processes.rank == 0
        self.log_path = os.path.join(options.out, "log.jsonl")

    def before_first_step(self):
        """Prepare the log. In a resumed run, cut off the log's lines that the last checkpoint does
        not know, and save the model."""
        if self.is_main:
            cut_log(self.log_path, self.run_state.log_size)
            if self.run_state.first_step > 0:
                # The run may have been killed after its checkpoint and before its model was saved.
                self.save_model()
            self.start_clock(self.run_state.first_step)

    def start_clock(self, steps_done):
        """Begin a new measurement of the speed."""
        self.steps_at_start = steps_done
        self.time_at_start = time.perf_counter()

    def tokens_per_second(self, steps_done):
        """Return the speed since start_clock was called."""
        seconds = time.perf_counter() - self.time_at_start
        num_steps = steps_done - self.steps_at_start
        num_tokens = num_steps * self.objective.tokens_per_step
        return num_tokens / seconds

    def after_step(self, steps_done, result, signals, bar):
        """Do what is due after a step.

        result: the StepResult of the step
        signals: the list of noted_signals
        bar: the progress_bar
        """
        evaluate_now, log_now, save_now = what_is_due(steps_done, self.options)
        stop = must_stop(signals, log_now or save_now, self.processes)
        if stop:
            save_now = True                              # a run that stops writes a checkpoint
        # To read the norm, the program waits until a GPU has computed it. So on a GPU only the
        # steps that are logged or saved are checked. A nan or an inf in the gradients of a step
        # between them is found, too: it makes the weights nan, and so the norm of each later step.
        is_on_cpu = self.processes.device.type == "cpu"
        if log_now or save_now or is_on_cpu:
            check_finite_step(steps_done, result)

        if self.is_main and log_now:
            speed = self.tokens_per_second(steps_done)
            line = log_line(steps_done, result, speed)
            if evaluate_now:
                line |= held_out_scores(self.evaluate_model, steps_done)
            append_to_log(self.log_path, line)
        if self.is_main and save_now:
            self.save_checkpoint(steps_done)
        if self.is_main and log_now:
            # This comes after the checkpoint: printing fails if the terminal or a pipe was closed.
            show_progress(bar, line, self.options.steps)
            # The clock starts only now, so that an evaluation does not lower the measured speed.
            self.start_clock(steps_done)
        if stop:
            stop_run(signals, steps_done, self.options, self.processes)

    def save_checkpoint(self, steps_done):
        """Write the state of the training, and then the model."""
        path = checkpoint_path(self.options)
        log_size = os.path.getsize(self.log_path)
        run_state = self.run_state
        # The tensors are collected each time, because an optimiser may replace those of its state.
        tensors = training_state(run_state.model, run_state.optimizer)
        save_training_state(path, tensors, steps_done, log_size, run_state.settings)
        self.save_model()


def what_is_due(steps_done, options):
    """Decide what is due after steps_done steps -> evaluate_now, log_now, save_now.

    If the model is evaluated, a line is logged, too. After the last step all three are due.
    """
    is_last = steps_done == options.steps
    evaluate_now = is_last
    if options.eval_every > 0 and steps_done % options.eval_every == 0:
        evaluate_now = True
    log_now = evaluate_now or steps_done % options.log_every == 0
    save_now = is_last or steps_done % options.save_every == 0
    return evaluate_now, log_now, save_now


def must_stop(signals, look_now, processes):
    """Return True if this process must stop after this step, because a process got a signal.

    A single process looks at its list of signals after each step. Several processes must all stop
    after the same step, so they add up the lengths of their lists. A GPU is idle while the program
    waits for this sum. So look_now is True only after some steps, the same in all processes.
    """
    if processes.world_size == 1:
        return len(signals) > 0
    if not look_now:
        return False
    num_signals = torch.tensor(len(signals), device=processes.device)
    dist.all_reduce(num_signals)
    return num_signals.item() > 0


def check_finite_step(steps_done, result):
    """Raise FloatingPointError if the gradient's norm is inf or nan. The error shows all losses."""
    gradient_norm = float(result.gradient_norm)          # this waits for a GPU
    if not math.isfinite(gradient_norm):
        losses = ", ".join(f"{name} {float(value):g}" for name, value in result.totals.items())
        raise FloatingPointError(f"step {steps_done}, learning rate {result.lr:g}: {losses}, "
                                 f"gradient norm {gradient_norm:g}; no checkpoint of this step "
                                 "was written. A lower --lr may help")


def held_out_scores(evaluate_model, steps_done):
    """Measure the model -> its scores as items of a line of the log: {"valid_NAME": value}.

    FloatingPointError if a score is not finite: even if the last gradient was finite, the update
    can have spoilt the model.
    """
    items = {}
    for name, value in evaluate_model().items():
        if not math.isfinite(value):
            raise FloatingPointError(f"step {steps_done}: the held-out {name} is {value}; no "
                                     "checkpoint of this step was written")
        items[f"valid_{name}"] = value
    return items


def stop_run(signals, steps_done, options, processes):
    """Raise SystemExit after a signal. The first process calls this after its checkpoint."""
    with suppress(OSError):                              # the terminal may have been closed
        print(f"\nstopped after step {steps_done:,} of {options.steps:,}: the same command, with "
              "--resume and without --overwrite, goes on from there", flush=True)
    # When one process ends, torchrun soon ends the others. So all wait here until the first one has
    # written its checkpoint.
    if processes.world_size > 1:
        dist.barrier()
        leave_processes()
    # If only another process has received a signal, its number is not known here. SIGTERM is taken.
    signal_number = signal.SIGTERM
    if signals:
        signal_number = signals[0]
    # Shells report 128 + n for a program that signal n has ended.
    raise SystemExit(128 + signal_number)


# ---- Log, progress bar and signals ------------------------------------------------------

def cut_log(path, size):
    """Make the log if there is none. Of an older log only the whole lines in its first `size` bytes
    are kept.

    size: the bytes that the log had at the last checkpoint. A run that was killed may have written
        more lines, or a part of one
    """
    with open(path, "ab+") as log:
        log.seek(0)
        kept = log.read(size)
        end_of_last_line = kept.rfind(b"\n") + 1         # rfind returns -1 if there is no line
        log.truncate(end_of_last_line)


def log_line(steps_done, result, tokens_per_second):
    """Make a line of log.jsonl, a dict. Reading the values makes the program wait for a GPU."""
    losses = {name: value.item() for name, value in result.totals.items()}
    return {"step": steps_done, **losses, "lr": result.lr,
            "gradient_norm": result.gradient_norm.item(),
            "tokens_per_second": round(tokens_per_second),
            "time": round(time.time())}                  # seconds since 1970


def append_to_log(path, line):
    """Append a line, which is a dict, to the log."""
    with naming_file(path), open(path, "a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")


def progress_bar(items, **options):
    """Return an iterator over items. The first process shows a progress bar with these options of
    tqdm, if there is a terminal."""
    # tqdm(disable=None) shows a bar only in a terminal, tqdm(disable=True) never shows one.
    disable = None
    if os.environ.get("RANK", "0") != "0":
        disable = True
    return tqdm(items, disable=disable, **options)


def measuring_bar(numbers):
    """Return a progress_bar for a loop that measures a model: it appears after 5 s and is removed
    at the end of the loop."""
    return progress_bar(numbers, desc="measuring", delay=5, leave=False)


def show_progress(bar, line, steps):
    """Show a line of the log in the progress bar, or print it where there is no terminal, and so no
    bar."""
    shown = {"loss": f"{line['loss']:.3f}"}
    for name, value in line.items():
        if name.startswith("valid_"):
            shown[name] = f"{value:.3f}"
    if not bar.disable:
        bar.set_postfix(shown)
    else:
        scores = ", ".join(f"{name} {value}" for name, value in shown.items())
        print(f"step {line['step']:,} of {steps:,}: {scores}", flush=True)


@contextmanager
def noted_signals():
    """Collect the numbers of signals in a list while the with block runs. The signals do not end
    the program then. They are SIGINT (Ctrl-C), SIGTERM and SIGHUP (the terminal was closed).

    The block must look at the list now and then, and raise an exception if there is a signal in it.
    If a signal has come after the last look, SystemExit is raised at the end of the block.
    """
    received = []
    if threading.current_thread() is not threading.main_thread():
        yield received                                   # stays empty: this thread gets no signals
        return

    def note(number, frame):
        received.append(number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP"):                        # Windows does not have it
        numbers.append(signal.SIGHUP)
    old_handlers = {}
    for number in numbers:
        # A shell script makes the commands in its background ignore Ctrl-C, and nohup makes a
        # command ignore SIGHUP. A signal that is ignored stays ignored. A handler that is not
        # Python's, such as that of a program that embeds Python, stays, too; for it getsignal
        # returns None.
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            old_handlers[number] = signal.signal(number, note)    # returns the handler until now
    try:
        yield received
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
    # If the block has raised an exception, that exception has ended this function already.
    if received:
        raise SystemExit(128 + received[0])              # as in stop_run


# ---- Measuring a model ------------------------------------------------------------------

@torch.inference_mode()
def evaluate(model, batches, each_recursion=False):
    """Measure MLM accuracy and loss (nats) -> {"accuracy": ..., "loss": ...}.

    each_recursion: also measure "accuracy_after", a list of R + 1 accuracies: of the predictions
        from the embeddings, from the states after one recursion, after two, and so on

    Up to 512 sequences of the held-out part are measured, in whole batches, but at least one batch.
    The sequences are drawn at random, but they and their masked places are always the same. If the
    held-out part has fewer sequences than a batch, they are used several times. The model is left
    in eval mode. ValueError if it has no MLM head, or if no token is masked.
    """
    model.eval()
    R = model.config.num_hidden_layers
    measured_depths = [R]                                # only after all R recursions
    if each_recursion:
        measured_depths = range(R + 1)                   # after 0, 1, ..., R recursions
    correct_after = [0] * (R + 1)                        # right guesses after 0, 1, ..., R
    total_loss = 0.0
    num_masked = 0
    num_batches = max(1, min(512, batches.count) // batches.batch_size)
    for batch_number in measuring_bar(range(num_batches)):
        ids, positions, labels = to_device(device_of(model), *batches.batch(batch_number))
        hidden, _ = model(ids)
        for depth in measured_depths:
            masked_states = take_masked(hidden[depth], positions)             # (M, C)
            logits = model.predict(masked_states)                             # (M, V)
            is_correct = logits.argmax(-1) == labels                          # (M,)
            correct_after[depth] += is_correct.sum().item()
            if depth == R:                               # the logits are those of the whole model
                total_loss += mlm_loss(logits, labels).item()
        num_masked += len(labels)
    if num_masked == 0:
        raise ValueError("no token of the held-out text was masked: its sequences are too short, "
                         "or they consist of special tokens such as [UNK]")
    scores = {"accuracy": correct_after[R] / num_masked, "loss": total_loss / num_masked}
    if each_recursion:
        scores["accuracy_after"] = [correct / num_masked for correct in correct_after]
    return scores


# ---- Processes and devices --------------------------------------------------------------
# torchrun starts this program several times. The processes share each batch, and after each step
# all of them have the same model:
# - They begin with the same parameters and optimiser: begin_or_resume broadcasts those of rank 0,
#   but not what is frozen (training_state).
# - Each of them makes the whole batch of a step, which depends on the seed and the step alone, but
#   puts only its own micro-batches through the models (split_batch).
# - The losses of these are divided by numbers of the whole batch. So they add up to its losses, and
#   the gradients add up to its gradients: sum_over_processes adds them.
# - All processes then make the same update.
# A single process would compute the same, apart from rounding and dropout (seed_dropout). Only rank
# 0 writes into --out.

class Processes(NamedTuple):
    """Which of torchrun's processes this one is; the defaults are those of a single process."""
    rank: int = 0                   # its number among all processes
    local_rank: int = 0             # its number among those on this machine
    world_size: int = 1             # how many there are
    device: torch.device = torch.device("cpu")


def set_up_processes(device_flag):
    """Join the processes that torchrun started, if any -> Processes. Afterwards only rank 0 writes
    to standard output, and memory that is freed is kept: see keep_freed_memory.

    device_flag: see choose_device
    ValueError if the device is not available, or if the processes cannot meet.
    """
    rank, local_rank, world_size = read_torchrun_numbers()
    if world_size > 1 and (":" in device_flag or device_flag == "mps"):
        raise ValueError(f"--device {device_flag}: {world_size} processes cannot share a GPU; say "
                         "cuda or cpu")
    device = choose_device(device_flag, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)                    # from here on "cuda" means this GPU
    if world_size > 1:
        timeout = timedelta(hours=12)                    # the first process may tokenise for hours
        with expecting("torchrun's processes", "able to meet (MASTER_ADDR, MASTER_PORT or NCCL)"):
            if device.type == "cuda":
                dist.init_process_group("nccl", timeout=timeout, device_id=device)
            else:
                dist.init_process_group("gloo", timeout=timeout)
    if rank > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8", errors="replace")
    keep_freed_memory()
    return Processes(rank, local_rank, world_size, device)


def read_torchrun_numbers():
    """Read the variables that torchrun sets for each process -> rank, local_rank, world_size. They
    are 0, 0 and 1 if torchrun did not start this program. ValueError if they make no sense."""
    # An error in the with block becomes "RANK, LOCAL_RANK, WORLD_SIZE: not the numbers that
    # torchrun sets: ...".
    with expecting("RANK, LOCAL_RANK, WORLD_SIZE", "the numbers that torchrun sets"):
        rank = int(os.environ.get("RANK", 0))
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        world_size = int(os.environ.get("WORLD_SIZE", 1))
        if not 0 <= local_rank <= rank < world_size:
            raise ValueError(f"they are {rank}, {local_rank} and {world_size}; those that are not "
                             "set count as 0, 0 and 1")
    return rank, local_rank, world_size


def choose_device(name, local_rank=0):
    """Return the torch.device of --device: auto (cuda if there is a CUDA GPU, else cpu), cpu, cuda
    (the GPU number local_rank), cuda:N, or mps.

    ValueError if there is no such device.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:(0|[1-9][0-9]?))?|mps", name):
        raise ValueError(f"--device: {name!r} is not auto, cpu, cuda, cuda:N or mps")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError("--device mps: torch finds none here")
        return torch.device("mps")
    if not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch finds no GPU here")
    device = torch.device("cuda", local_rank)
    if ":" in name:
        device = torch.device(name)
    if device.index >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: this process needs GPU number {device.index}, counted "
                         f"from 0, but torch finds {torch.cuda.device_count()}")
    return device


def uses_bf16(flag, device):
    """Return whether to multiply in bfloat16: what the flag --bf16 says or, if it is None, whether
    the device is a CUDA GPU. ValueError if that does not know bfloat16."""
    bf16 = flag
    if flag is None:
        bf16 = device.type == "cuda"
    if bf16 and device.type == "cuda":
        # An older GPU can emulate bfloat16, but that would be slower than float32.
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise ValueError("this GPU does not know bfloat16, which is the default on a GPU: say "
                             "--no-bf16")
    return bf16


def keep_freed_memory():
    """Tell the C library to keep, until the process ends, the memory that the program frees: the
    next step needs it again.

    Otherwise each step on a CPU returns as much as hundreds of megabytes to the system and requests
    them again, which costs 5 to 25 % of its time.
    """
    # These are the numbers of two options of mallopt, from the file malloc.h of glibc.
    M_TRIM_THRESHOLD = -1
    M_MMAP_MAX = -4
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):                     # some systems have another C library
            # -1 as the threshold means: the free memory at the end of the heap is never given back.
            libc.mallopt(M_TRIM_THRESHOLD, -1)
            # glibc puts large blocks outside the heap and always gives those back. So no block may
            # be put there.
            libc.mallopt(M_MMAP_MAX, 0)


def check_batch_size(batch_size, processes):
    """Raise ValueError if a batch has fewer sequences than there are processes."""
    if batch_size < processes.world_size:
        raise ValueError(f"--batch-size {batch_size} is less than one sequence for each of the "
                         f"{processes.world_size} processes")


@contextmanager
def one_per_machine_first(processes):
    """Let one process of each machine run the with block before the others. It does the work, such
    as tokenising; the others then find the result."""
    # A barrier makes each process wait until all have called it.
    is_early = processes.local_rank == 0                 # also True if there is only one process
    if not is_early:
        dist.barrier()                                   # wait until the early ones have finished
    yield
    if is_early and processes.world_size > 1:
        dist.barrier()                                   # let the others begin


def broadcast(tensors, processes):
    """Copy the values of rank 0's tensors into those of all other processes. Without this they
    could differ: another machine may round differently, and only rank 0 reads a checkpoint."""
    if processes.world_size > 1:
        for tensor in tensors:
            # detach() shares the memory. Without it torch would warn in the backward pass that it
            # cannot compute gradients through a broadcast.
            dist.broadcast(tensor.detach(), src=0)


def seed_dropout(seed, step, processes):
    """Seed what dropout draws in a step. It depends on the seed, the step and the process alone, so
    a resumed run draws the same."""
    # Each step of each process gets a seed of its own if there are at most 1,000,003 steps and 1009
    # processes.
    seed_of_step = seed * 1_000_003 + step
    torch.manual_seed(seed_of_step * 1009 + processes.rank)


def sum_over_processes(model, totals, processes):
    """Replace the gradients and the losses {name: scalar} by their sums over all processes.

    They are sent in one message, because a hundred small ones would take many times as long.
    """
    if processes.world_size == 1:
        return
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    tensors = gradients + list(totals.values())
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    sums = flat.split([tensor.numel() for tensor in tensors])
    # The sums are copied back, so that the memory of flat is free again. copy_ also keeps the order
    # in memory of a gradient, which must be that of its parameter: AdamW relies on it.
    for tensor, summed in zip(tensors, sums):
        tensor.copy_(summed.view_as(tensor))


def leave_processes():
    """Leave the group of processes that set_up_processes has joined, if any."""
    # Some builds of torch, such as that for AMD on Windows, have no groups.
    if dist.is_available() and dist.is_initialized():
        # Before torch 2.8, destroy_process_group() holds Python's lock until gloo's threads have
        # ended. A thread that still has to free a tensor needs this lock, so both would wait for
        # ever. In this pause the threads free their tensors.
        time.sleep(0.1)
        dist.destroy_process_group()


# ---- The command line: flags ------------------------------------------------------------

BUNDLED_TEACHER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "assets", "teacher")
DEFAULT_OUT = "out/student"         # finetune.py tunes this student by default
# A recipe is a set of defaults for flags. If it has no weight for a loss, LOSS_WEIGHTS has one.
# The recipe "full" is for a real BERT on a GPU.
FULL = {"steps": 100_000, "batch_size": 192, "length": 256, "lr": 5e-4, "warmup": 5000,
        "weight_decay": 0.01, "dropout": 0.0, "elastic": 2.5, "eval_every": 2000,
        "save_every": 2000}
RECIPES = {
    # This takes minutes on a CPU. Its learning rate depends on the student: see options_of_run.
    "quick": FULL | {
        "steps": 1800, "batch_size": 16, "length": 64, "lr": None, "warmup": 100,
        "eval_every": 200, "save_every": 200},
    "full": FULL,
    # These are the authors' values. The authors give the attention loss the weight 3, too, but
    # their code divides this loss by the 256 tokens of a sequence. So the weight here is 3 / 256.
    # MANUAL.md lists where this code departs from theirs: for example, a GPU computes in bfloat16.
    "paper": FULL | {
        "weight_decay": 1e-4, "dropout": 0.1, "attention_weight": 3 / 256, "hidden_weight": 3.0,
        "elastic": 0.0, "init": "random", "tie_decoder": False, "num_hidden_layers": 6,
        "embedding_size": 128},
}
LOSS_FLAGS = {name: f"--{name}-weight" for name in LOSS_WEIGHTS} | {"elastic": "--elastic"}
MOST_PARAMETERS = 2**30             # of a fresh student; training them takes 16 GB
SHAPE_FIELDS = ("num_hidden_layers", "num_hidden_groups", "hidden_size", "embedding_size",
                "adapter_size", "correction_rank", "num_attention_heads", "intermediate_size",
                "tie_decoder")


def add_run_flags(parser, out_help, eval_every_default, save_every_default):
    """Add the group of the flags about a run, which distill.py and finetune.py share.

    The two defaults differ between the scripts. They are only shown by --help, not set here.
    """
    group = parser.add_argument_group("run")
    group.add_argument("--out", type=path_name, metavar="DIR", help=out_help)
    choice = group.add_mutually_exclusive_group()
    choice.add_argument("--resume", action="store_true",
                        help="go on with the run in --out after its last checkpoint")
    choice.add_argument("--overwrite", action="store_true",
                        help="start anew in --out; the files of the run that is there are removed")
    group.add_argument("--seed", type=integer_from(0), default=0, metavar="N",
                       help="seed of all random numbers of the training (default: 0)")
    group.add_argument("--log-every", type=integer_from(1), default=50, metavar="STEPS",
                       help="write a line to log.jsonl, and show its loss and its held-out "
                       "scores, after each STEPS steps and after each evaluation (default: 50)")
    group.add_argument("--eval-every", type=integer_from(0), metavar="STEPS",
                       help="measure the model after each STEPS steps; 0: only at the end "
                       f"(default: {eval_every_default})")
    group.add_argument("--save-every", type=integer_from(1), metavar="STEPS",
                       help="write a checkpoint after each STEPS steps (default: "
                       f"{save_every_default})")
    group.add_argument("--device", default="auto", metavar="NAME",
                       help="cpu, cuda, cuda:N, mps or auto, which is cuda if there is a CUDA GPU, "
                       "else cpu (default: auto)")
    group.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=None,
                       help="multiply matrices in bfloat16; trained weights, losses and optimiser "
                       "stay in float32 (default: on a GPU)")


def add_model_flags(parser):
    """Add the flags of distill.py about the two models, and the flag that only measures them."""
    group = parser.add_argument_group(
        "models", "The student has the teacher's widths and heads, but narrower embeddings, one\n"
        "shared layer and corrections, unless a flag changes it.")
    group.add_argument("--teacher", metavar="DIR",
                       help="the teacher: a folder, a Hugging Face name, or the word none, to "
                       "train without a teacher (default: the bundled one, assets/teacher)")
    group.add_argument("--student", metavar="DIR",
                       help="start from this model, a folder or a Hugging Face name, not from a "
                       "fresh student")
    group.add_argument("--init", choices=("teacher", "sharp", "random"),
                       help="initial values of a fresh student. teacher: taken from the teacher; "
                       "sharp: random, so that all attention maps are sharp enough to learn from; "
                       "random: as in BERT (default: teacher; without a teacher: sharp; with "
                       "--recipe paper: random)")
    group.add_argument("--num-hidden-layers", type=integer_from(1), metavar="R",
                       help="recursions: how many layers are applied, one after the other "
                       "(default: as many as the teacher has, but 6 if it has 12; 6 without a "
                       "teacher or with --recipe paper)")
    group.add_argument("--num-hidden-groups", type=integer_from(1), metavar="G",
                       help="number of different layers; 1: all recursions share one; R: nothing "
                       "is shared (default: 1)")
    group.add_argument("--hidden-size", type=integer_from(1), metavar="C",
                       help="width of the hidden states (default: the teacher's; 128 without one)")
    group.add_argument("--embedding-size", type=integer_from(1), metavar="E",
                       help="width of the embeddings (default: 128, but at most C / 2 and the "
                       "teacher's; with --recipe paper always 128)")
    group.add_argument("--adapter-size", type=integer_from(0), metavar="A",
                       help="width of each recursion's adapters; if it is given, even as 0, there "
                       "are no corrections by default (default: 0; with --recipe paper C / 16, "
                       "unless nothing is shared or there are corrections)")
    group.add_argument("--correction-rank", type=integer_from(0), metavar="K",
                       help="rank of each recursion's own corrections of the shared matrices, 0 "
                       "for none (default: C / 8, but at most I; 0 with --recipe paper, with "
                       "--adapter-size, or if nothing is shared)")
    group.add_argument("--num-attention-heads", type=integer_from(1), metavar="H",
                       help="attention heads, which must divide C (default: the teacher's; "
                       "without one the largest number up to C / 32 that divides C)")
    group.add_argument("--intermediate-size", type=integer_from(1), metavar="I",
                       help="width of the feed-forward (default: the teacher's; 4 C without one)")
    group.add_argument("--tie-decoder", action=argparse.BooleanOptionalAction, default=None,
                       help="use the word embeddings as the output matrix, too (default: yes; "
                       "with --recipe paper: no)")
    group.add_argument("--evaluate", action="store_true",
                       help="only measure: the accuracy of the --student, of the --teacher or of "
                       "both on the held-out part of the corpus; nothing is written to --out")


def add_loss_flags(parser):
    """Add the flags of distill.py about the losses."""
    group = parser.add_argument_group(
        "losses", "The loss is the sum of these, each times its weight; 0 leaves one out.\n"
        "Without a teacher only mlm is possible. If the teacher has no MLM head, output and\n"
        "elastic are left out, and mlm, too, unless you give --mlm-weight or --student.")
    help_texts = {
        "mlm": "cross-entropy with the masked words (default: 1)",
        "attention": "KL divergence of the rows of the attention maps from the teacher's "
        "(default: 3; paper: 3 / 256)",
        "hidden": "1 - cosine of the hidden states with the teacher's (default: 10; paper: 3)",
        "output": "KL divergence of the predicted distributions from the teacher's (default: 5)",
        "embedding": "1 - cosine of the embeddings with the teacher's (default: 0)",
        "elastic": "the output loss after an earlier recursion, drawn at random for each masked "
        "word, so that the student can also predict after fewer recursions; it needs two "
        "recursions (default: 2.5, but 0 without the output loss or with one recursion; paper: 0)"}
    for name, flag in LOSS_FLAGS.items():
        group.add_argument(flag, type=real_number(), metavar="W",
                           help=f"weight of: {help_texts[name]}")
    group.add_argument("--temperature", type=real_number(smallest=0.001, upper=1000.0),
                       default=1.0, metavar="X",
                       help="divides the logits of both models in the output loss and the elastic "
                       "loss; above 1 it flattens the distributions, 1 changes nothing (default: "
                       "1)")


def add_training_flags(parser):
    """Add the flags of distill.py about training. If they are not given, most of them take the
    recipe's values."""
    group = parser.add_argument_group(
        "training", "Defaults are those of the recipe quick, in brackets those of full and paper.")
    group.add_argument("--recipe", choices=sorted(RECIPES),
                       help="a set of defaults. quick: takes minutes; full: for a real BERT; "
                       "paper: the authors' values (default: full on a GPU with another "
                       "teacher than the bundled one, else quick)")
    group.add_argument("--steps", type=integer_from(1), metavar="N",
                       help="steps to train (default: 1,800 [100,000])")
    group.add_argument("--batch-size", type=integer_from(1), metavar="B",
                       help="sequences in a step, of all processes together (default: 16 [192])")
    group.add_argument("--micro-batch-size", type=integer_from(0), default=0, metavar="B",
                       help="sequences in memory at once; apart from dropout and rounding the "
                       "result is the same (default: 0, as many as each process has of a batch)")
    group.add_argument("--length", type=integer_from(3), metavar="T",
                       help="tokens in a sequence, with [CLS] and [SEP] (default: 64 [256])")
    group.add_argument("--lr", type=real_number(), metavar="X",
                       help="highest learning rate (default: 0.384 divided by the hidden size, "
                       "but at most 0.003 [0.0005])")
    group.add_argument("--warmup", type=integer_from(0), metavar="N",
                       help="steps during which the learning rate grows; then it falls towards 0 "
                       "(default: 100 [5,000], but at most a tenth of --steps, if --steps is "
                       "given)")
    group.add_argument("--weight-decay", type=real_number(), metavar="X",
                       help="weight decay of AdamW; biases and LayerNorms have none (default: "
                       "0.01; paper: 0.0001)")
    group.add_argument("--dropout", type=real_number(upper=1.0), metavar="P",
                       help="probability of dropout in the student (default: 0; in the recipe "
                       "paper 0.1)")
    group.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None,
                       help="fuse the operations of a step with torch.compile (default: on a GPU, "
                       "but not in the recipe quick)")
    group.add_argument("--cuda-graphs", action=argparse.BooleanOptionalAction, default=None,
                       help="start the operations of a step all at once, so that the GPU waits "
                       "less for the CPU; it needs --compile, and a batch that the processes share "
                       "evenly, without micro-batches (default: on a GPU, where that is so)")


def add_data_flags(parser):
    """Add the flags of distill.py about the corpus and the tokenizer."""
    group = parser.add_argument_group("data")
    group.add_argument("--corpus", type=path_name, nargs="+", action="extend", metavar="PATH",
                       help="files and folders of .txt, .jsonl and .csv, or a token file of "
                       "data.py (default: the documentation on this machine)")
    group.add_argument("--text", default="text", metavar="COLUMN",
                       help="the field of the text in a .jsonl, the column in a .csv (default: "
                       "text)")
    group.add_argument("--tokenizer", metavar="DIR",
                       help="folder or Hugging Face name (default: the teacher's, or --student's)")
    group.add_argument("--cache", type=path_name, default=CACHE, metavar="DIR",
                       help="where tokenised corpora are kept (default: ~/.cache/minialbert)")


# The flags that --evaluate reads.
EVALUATE_FLAGS = ("--evaluate", "--teacher", "--student", "--tokenizer", "--corpus", "--text",
                  "--cache", "--length", "--device", "--bf16")


def arguments(argv):
    """Parse the command line; what is not given is filled in from the recipe.

    A new flag that changes what is trained also belongs in settings_of_command.
    """
    parser = CommandParser("distill.py", __doc__)
    add_model_flags(parser)
    add_loss_flags(parser)
    add_training_flags(parser)
    add_data_flags(parser)
    add_run_flags(parser, f"the folder for the student (default: {DEFAULT_OUT})",
                  eval_every_default="200 [2,000]",
                  save_every_default="200 [2,000], but at most a tenth of --steps, if --steps "
                  "is given")
    parser.set_defaults(out=DEFAULT_OUT)
    args = parser.parse_args(argv)

    # Before this line None means that --teacher was not given, after it that there is no teacher.
    args.teacher = choose_teacher(args)
    check_flags(args, given_flags(argv))
    fill_in_defaults(args)
    if args.warmup > args.steps:
        raise ValueError(f"--warmup {args.warmup} is more than --steps {args.steps}")
    return args


def choose_teacher(args):
    """Return the teacher, a folder or a Hugging Face name; None: there is no teacher."""
    if args.teacher == "none":
        return None
    if args.teacher is not None:
        return args.teacher
    if args.evaluate and args.student is not None:
        return None                                      # the student alone is measured
    return BUNDLED_TEACHER


def check_flags(args, given):
    """Raise ValueError for flags that contradict each other, or that would be ignored whatever the
    models are."""
    if args.evaluate:
        allow_only(given, EVALUATE_FLAGS, "--evaluate")
        if args.teacher is None and args.student is None:
            raise ValueError("--evaluate: give a --teacher or a --student to measure")
        return                                           # what follows is about training
    if args.student is not None:
        shape_flags = ["--" + name.replace("_", "-") for name in SHAPE_FIELDS]
        refuse_flags(given, ["--init"] + shape_flags,
                     "the model in --student has its own shape and weights")
    if args.teacher is None:
        if args.init == "teacher":
            raise ValueError("--init teacher needs a teacher, but --teacher is none")
        if args.student is None and args.tokenizer is None:
            raise ValueError("--teacher none: give a --tokenizer, because there is no teacher to "
                             "take it from")
        about_teacher = [flag for flag in LOSS_FLAGS.values() if flag != "--mlm-weight"]
        refuse_flags(given, about_teacher + ["--temperature"],
                     "with --teacher none there is nothing to compare with")
    if args.corpus is not None:
        check_out_is_outside(args.out, args.corpus)


def fill_in_defaults(args):
    """Fill in the defaults of the flags that were not given. Most of them are the recipe's."""
    if args.recipe is None:
        args.recipe = default_recipe(args)
    defaults = {f"{name}_weight": weight for name, weight in LOSS_WEIGHTS.items()}
    defaults["init"] = "sharp" if args.teacher is None else "teacher"
    defaults |= RECIPES[args.recipe]                     # paper has other weights and another init
    if args.student is not None:
        # Nothing is initialised: the model in --student has its weights. Do not replace this "" by
        # another value: checkpoints hold it, and --resume refuses a run with other settings.
        defaults["init"] = ""
    if args.steps is not None:
        # A shorter run than the recipe's has a shorter warm-up, and saves more often.
        a_tenth = args.steps // 10
        defaults["warmup"] = min(defaults["warmup"], a_tenth)
        defaults["save_every"] = min(defaults["save_every"], max(1, a_tenth))
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def default_recipe(args):
    """Return the name of the recipe if --recipe is not given. It is full for training on a GPU with
    a teacher other than the bundled one. Else, also without a teacher, it is quick."""
    # A measurement takes only the length from the recipe. The length must not depend on teacher or
    # device, because accuracies can be compared only at the same length.
    if args.evaluate or args.teacher is None:
        return "quick"
    # --teacher may also name the folder of the bundled teacher.
    has_own_teacher = os.path.realpath(args.teacher) != os.path.realpath(BUNDLED_TEACHER)
    if has_own_teacher and args.device != "cpu" and torch.cuda.is_available():
        return "full"
    return "quick"


# ---- The command line: running it -------------------------------------------------------

def run(args, given):
    """Do what the command line asks for. given: the flags on it."""
    processes = set_up_processes(args.device)
    if not args.evaluate:
        check_batch_size(args.batch_size, processes)
    bf16 = uses_bf16(args.bf16, processes.device)
    models, tokenizer = load_models(args)
    if args.evaluate:
        run_evaluation(args, models, tokenizer, bf16, processes)
        return
    teacher = models.get("teacher")                      # None: there is no teacher
    if args.student is None:
        student = make_student(args, teacher, tokenizer.vocab_size)
    else:
        student = copy_student(args, models["student"])
    models["student"] = student                          # it replaces that of --student, if any
    options = options_of_run(args, student.config.hidden_size)
    loss_weights = choose_losses(args, teacher, student.config.num_hidden_layers, given)
    trains_head = any(name in HEAD_LOSSES for name in loss_weights)
    if not trains_head:
        # Training changes the layers. A head that is not trained would no longer fit them.
        student.head = None
    check_sizes(models, tokenizer, args.length)
    check_losses(student, teacher, loss_weights)
    if args.init == "teacher":
        check_start(student, teacher)
    settings = settings_of_command(args, options, bf16, loss_weights, teacher, student)
    inputs = [args.teacher, args.student, args.tokenizer]
    if args.corpus is not None:
        inputs += args.corpus
    with lock_folder(args, "distill.py", settings, inputs, processes):
        train_student(args, options, settings, models, tokenizer, loss_weights, bf16, processes)


def load_models(args):
    """Load the models of --teacher and --student, and the tokenizer -> {"teacher": MiniALBERT,
    "student": MiniALBERT}, Tokenizer. A model that was not given is not in the dict."""
    paths = {}
    models = {}
    for name, source in [("teacher", args.teacher), ("student", args.student)]:
        if source is not None:                           # a folder or a Hugging Face name
            paths[name] = fetch(source)
            models[name] = load(paths[name])
    if args.tokenizer is not None:
        tokenizer_path = fetch(args.tokenizer, weights=False)
    elif args.teacher is not None:
        tokenizer_path = paths["teacher"]
    else:
        tokenizer_path = paths["student"]
    tokenizer = Tokenizer(tokenizer_path)
    for name, path in paths.items():
        check_same_tokens(tokenizer, path, name)
    return models, tokenizer


def check_same_tokens(tokenizer, path, name):
    """Raise ValueError if the tokenizer of this run and that in a model's folder have different
    tokens. If the folder has no readable tokenizer, nothing is compared.

    path: the folder; name: "teacher" or "student", for the message
    """
    try:
        own_tokenizer = Tokenizer(path)
    except (ValueError, OSError):
        return
    if own_tokenizer.backend.get_vocab() != tokenizer.backend.get_vocab():
        raise ValueError(f"the tokenizer in {tokenizer.path}: its tokens are not those of the "
                         f"{name} in {path}; --teacher, --student and --tokenizer must have the "
                         "same tokens")


def run_evaluation(args, models, tokenizer, bf16, processes):
    """Measure the models of --teacher and --student on the held-out part of the corpus."""
    check_sizes(models, tokenizer, args.length)
    for model in models.values():
        model.to(processes.device)
    corpus = open_and_describe_corpus(args, tokenizer, processes)
    valid_batches = make_valid_batches(corpus, tokenizer, args.length)
    print(f"length   {args.length} tokens in a sequence")
    print_scores(measure_models(models, valid_batches, bf16, each_recursion=True))


def check_sizes(models, tokenizer, length):
    """Raise ValueError if one of the models {name: model} has too few tokens or positions."""
    for name, model in models.items():
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(f"the tokenizer in {tokenizer.path} has {tokenizer.vocab_size} "
                             f"tokens, the {name} only {model.config.vocab_size} (vocab_size)")
        if length > model.config.max_position_embeddings:
            raise ValueError(f"--length {length}: the {name} has only "
                             f"{model.config.max_position_embeddings} positions; say --length "
                             f"{model.config.max_position_embeddings} or less")


def open_and_describe_corpus(args, tokenizer, processes):
    """Open the corpus -> TokenFile, and print which text it is and how long it is."""
    with one_per_machine_first(processes):
        corpus = open_corpus(args.corpus, tokenizer, args.cache, args.text)
    print(f"corpus   {corpus.source}: {len(corpus.train_tokens):,} tokens to train on, "
          f"{len(corpus.valid_tokens):,} held out")
    return corpus


def make_train_batches(corpus, tokenizer, length, batch_size, seed):
    """Make the batches on which a student is trained. ValueError if the corpus is too short."""
    # An error in the with block becomes "CORPUS, its part to train on: not long enough for --length
    # 64: ...".
    with expecting(f"{corpus.source}, its part to train on", f"long enough for --length {length}"):
        return MaskedBatches(corpus.train_tokens, tokenizer, length, batch_size, seed)


def make_valid_batches(corpus, tokenizer, length):
    """Make the batches on which models are measured, always the same ones. ValueError if the
    held-out part of the corpus is too short."""
    with expecting(f"{corpus.source}, its held-out part (a fiftieth of it)",
                   f"long enough for --length {length}"):
        return MaskedBatches(corpus.valid_tokens, tokenizer, length, batch_size=32)


def measure_models(models, valid_batches, bf16, each_recursion=False):
    """Measure models on the held-out text -> {name of a model: its results}.

    The results of a model are "parameters" and "applied" (the counts `stored` and `applied` of
    count_parameters) and, if it has an MLM head, what evaluate returns.
    """
    results = {}
    for name, model in models.items():
        counts = count_parameters(model)
        results[name] = {"parameters": counts["stored"], "applied": counts["applied"]}
        if model.head is not None:
            with autocast(device_of(model), bf16):
                results[name] |= evaluate(model, valid_batches, each_recursion)
    return results


def print_scores(results):
    """Print a table of what measure_models returned. If it has the accuracies after each recursion,
    print a second table of these."""
    print(f"{'':9}{'parameters':>12}{'applied':>12}{'MLM accuracy':>14}{'MLM loss':>10}")
    for name, result in results.items():
        row = f"{name:9}{result['parameters']:12,}{result['applied']:12,}"
        if "accuracy" in result:
            row += f"{result['accuracy']:14.1%}{result['loss']:10.3f}"
        else:
            row += "   no MLM head"
        print(row)
    accuracy_after = {}
    for name, result in results.items():
        if "accuracy_after" in result:
            accuracy_after[name] = result["accuracy_after"]
    if not accuracy_after:
        return
    num_columns = max(len(accuracies) for accuracies in accuracy_after.values())
    print("\nMLM accuracy after so many recursions, or layers if nothing is shared")
    print(f"{'':9}" + "".join(f"{depth:7}" for depth in range(num_columns)))
    for name, accuracies in accuracy_after.items():
        print(f"{name:9}" + "".join(f"{accuracy:7.1%}" for accuracy in accuracies))


def make_student(args, teacher, vocab_size):
    """Make a fresh student. ValueError if it would be too large."""
    torch.manual_seed(args.seed)
    config = student_config(args, teacher, vocab_size)
    # If a student needs far too much memory, the system may kill the program without a message. So
    # its parameters are counted first.
    empty_student = model_without_values(config, has_head=True)
    num_parameters = count_parameters(empty_student)["stored"]
    if num_parameters > MOST_PARAMETERS:
        raise ValueError(f"the student would have {num_parameters:,} parameters, but at most "
                         f"{MOST_PARAMETERS:,} are allowed; make its sizes smaller")
    student = MiniALBERT(config)                         # it has the values of --init sharp
    # With --init teacher, train_student() takes the values from the teacher later.
    if args.init == "random":
        initialise(student, sharp=False)
    return student


def student_config(args, teacher, vocab_size):
    """Choose a fresh student's Config: the teacher's, made recursive, then changed by the flags."""
    if args.hidden_size is not None:
        C = args.hidden_size
    elif teacher is not None:
        C = teacher.config.hidden_size
    else:
        C = 128
    # The shape is first that of the teacher or, without one, that of a BERT.
    if teacher is not None:
        shape = dict(vars(teacher.config))
    else:
        shape = shape_of_bert(C, vocab_size, args.length)
    # Then it becomes that of a student: few recursions of one layer, and narrow embeddings.
    if shape["num_hidden_layers"] == 12:
        shape["num_hidden_layers"] = 6                   # the paper's student of a BERT-base
    E = max(1, min(128, shape["embedding_size"], C // 2))
    shape |= {"hidden_size": C, "embedding_size": E, "num_hidden_groups": 1, "adapter_size": 0,
              "correction_rank": 0, "tie_decoder": True, "hidden_dropout_prob": args.dropout,
              "attention_probs_dropout_prob": args.dropout}
    # Then the flags change the shape. If they do not choose adapters or corrections,
    # default_own_parts does.
    for name in SHAPE_FIELDS:
        if getattr(args, name) is not None:
            shape[name] = getattr(args, name)
    shape |= default_own_parts(args, shape)
    return Config(**shape)


def shape_of_bert(C, vocab_size, length):
    """Choose the shape of a small BERT of the width C: {name of a field of Config: value}."""
    num_heads = max(1, C // 32)
    while C % num_heads != 0:
        num_heads -= 1
    return {"vocab_size": vocab_size, "embedding_size": C, "num_hidden_layers": 6,
            "num_attention_heads": num_heads, "intermediate_size": 4 * C,
            "max_position_embeddings": max(128, length)}


def default_own_parts(args, shape):
    """Choose the size of each recursion's adapters or corrections, if no flag chooses it.

    Without such parts all recursions that share a layer would apply the same function. Returns
    {"adapter_size": A}, {"correction_rank": K}, or {} if the shape stays as it is.
    """
    shares_layers = shape["num_hidden_groups"] < shape["num_hidden_layers"]
    if not shares_layers:
        return {}
    if args.adapter_size is not None:                    # even --adapter-size 0 is a choice
        return {}
    C = shape["hidden_size"]
    # The recipe paper has adapters, unless --correction-rank asks for corrections.
    if args.recipe == "paper" and shape["correction_rank"] == 0:
        return {"adapter_size": max(1, C // 16)}
    if args.correction_rank is None:
        return {"correction_rank": max(1, min(C // 8, shape["intermediate_size"]))}
    return {}                                            # --correction-rank is a choice, too


def copy_student(args, saved_student):
    """Copy the model of --student, with the dropout of this run, and with a head. (If no loss
    trains the head, run() removes it.)"""
    torch.manual_seed(args.seed)
    config = replace(saved_student.config, hidden_dropout_prob=args.dropout,
                     attention_probs_dropout_prob=args.dropout)
    student = MiniALBERT(config)
    # strict=False: if the saved_student has no head, the student's head keeps its fresh values.
    student.load_state_dict(saved_student.state_dict(), strict=False)
    return student


def options_of_run(args, C):
    """Return the TrainingOptions for a student of the width C."""
    lr = args.lr
    if lr is None:
        # In the recipe quick the rate is 3e-3 up to the width 128 and falls in proportion to 1 / C
        # beyond: 1e-3 for 384. EXPERIMENTS.md compares rates for the widths 128 and 384.
        lr = min(3e-3, 0.384 / C)
    return TrainingOptions(
        steps=args.steps, lr=lr, warmup=args.warmup, weight_decay=args.weight_decay,
        seed=args.seed, log_every=args.log_every, eval_every=args.eval_every,
        save_every=args.save_every, out=args.out, resume=args.resume)


def choose_losses(args, teacher, num_recursions, given):
    """Choose the losses -> {name: weight}. Two kinds are left out: those with the weight 0, and,
    unless a flag asks for them, those that default_losses does not return.

    given: the flags on the command line
    ValueError if --temperature was given, but no loss uses it.
    """
    wanted = {name: getattr(args, f"{name}_weight") for name in LOSS_WEIGHTS}
    wanted["elastic"] = args.elastic
    default = default_losses(teacher, args.student is None, num_recursions, args.output_weight)
    loss_weights = {}
    for name, weight in wanted.items():
        # Other losses are used only if a flag asks for them. Then check_losses decides.
        if weight > 0 and (name in default or LOSS_FLAGS[name] in given):
            loss_weights[name] = weight
    compares_predictions = "output" in loss_weights or "elastic" in loss_weights
    if not compares_predictions and "--temperature" in given:
        raise ValueError("--temperature: there is neither an output nor an elastic loss")
    return loss_weights


def default_losses(teacher, is_fresh, num_recursions, output_weight):
    """Return the set of the losses that are used by default, if their weights are not 0.

    teacher: a MiniALBERT, or None
    is_fresh: True if the student starts from the teacher or at random, not from --student
    output_weight: the weight of the output loss
    """
    if teacher is None:
        return {"mlm"}
    default = set(LOSS_NAMES)
    # The elastic loss is the output loss after an earlier recursion. So it is left out if there is
    # no earlier one, or if the output loss is left out, too.
    if num_recursions == 1 or output_weight == 0:
        default -= {"elastic"}
    if teacher.head is None:
        default -= {"output", "elastic"}
        if is_fresh:
            # By default such a student gets no head, for the teacher has none to start it from.
            default -= {"mlm"}
    return default


def settings_of_command(args, options, bf16, loss_weights, teacher, student):
    """Collect the settings that must be the same to resume a run: {name: value}. train_student()
    adds the corpus, which has not been read yet.

    A setting that does not apply should be None and not left out: what only one of two runs has is
    not compared. teacher_shape is left out, but then the setting "teacher" is None.
    """
    # How a fresh student starts follows from the other settings. So a hash is only needed for a
    # student from --student. Even in a resumed run this student still has the weights of --student
    # here, because the checkpoint is restored later.
    student_hash = None
    if args.student is not None:
        student_hash = fingerprint(student)
    settings = options.settings() | {
        "batch_size": args.batch_size, "length": args.length, "dropout": args.dropout,
        "bf16": bf16, "init": args.init, "weights": loss_weights, "temperature": args.temperature,
        "shape": vars(student.config), "teacher": fingerprint(teacher), "student": student_hash}
    if teacher is not None:
        settings["teacher_shape"] = vars(teacher.config)
    return settings


def fingerprint(model):
    """Compute a short hash of all parameters of a model -> text, or None if there is no model."""
    if model is None:
        return None
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def lock_folder(args, script, settings, inputs, processes):
    """Return a context manager. In the first process it locks the folder --out for this run (see
    run_folder); in the others it does nothing."""
    if processes.rank > 0:
        return nullcontext()
    return run_folder(args.out, script, settings, inputs, args.resume, args.overwrite)


def train_student(args, options, settings, models, tokenizer, loss_weights, bf16, processes):
    """Open the corpus, start the student from the teacher, train it, and print how good it is.

    models: {"teacher": MiniALBERT, "student": MiniALBERT}, or the student alone
    """
    student = models["student"]
    device = processes.device
    compile_losses, cuda_graphs = choose_compilation(args, processes)
    corpus = open_and_describe_corpus(args, tokenizer, processes)
    batches = make_train_batches(corpus, tokenizer, args.length, args.batch_size, args.seed)
    valid_batches = make_valid_batches(corpus, tokenizer, args.length)
    settings = settings | {"corpus": corpus.digest}
    prepare_models(models, args.init, batches, bf16, device)
    distillation = Distillation(
        student, models.get("teacher"), batches, loss_weights, temperature=args.temperature,
        micro_batch_size=args.micro_batch_size, processes=processes, bf16=bf16,
        compile_losses=compile_losses, cuda_graphs=cuda_graphs)

    # What these two functions measure and save must be the model that report_results measures at
    # the end: models["student"].
    def evaluate_student():
        if student.head is None:
            return {}
        with autocast(device, bf16):
            return evaluate(student, valid_batches)

    def save_student():
        save(student, args.out)
        tokenizer.save(args.out)

    run_state = begin_or_resume(student, options, settings, processes)
    print_scores(measure_models(models, valid_batches, bf16))    # before the training
    with explaining_failures():
        print_plan(args.recipe, options.lr, distillation, device)
        num_steps = options.steps - run_state.first_step
        if num_steps > 0:                                # it is 0 if a finished run is resumed
            print_duration(distillation, num_steps, compile_losses)
        if processes.rank == 0:
            # The files of an earlier run are removed only now. So if something above has failed,
            # --overwrite has lost nothing.
            claim_folder(args.out, "distill.py", settings, args.resume)
        train(distillation, run_state, options, evaluate_student, save_student, processes)
    report_results(models, tokenizer, valid_batches, bf16, args.out, processes)


def choose_compilation(args, processes):
    """Return whether to compile a step, and whether to run it as a CUDA graph. The flags --compile
    and --cuda-graphs decide, or else their defaults, which their help explains. ValueError if
    --cuda-graphs is given, but CUDA graphs are not possible."""
    has_gpu = processes.device.type == "cuda"
    compile_losses = args.compile
    if compile_losses is None:
        compile_losses = has_gpu and args.recipe != "quick"
    # All must decide alike. So each process counts the micro-batches of the first process. If that
    # has a single one, so have all others.
    first_process = processes._replace(rank=0)           # a copy with another rank
    micro_batches = split_batch(args.batch_size, args.micro_batch_size, first_process)
    can_use_graphs = has_gpu and compile_losses and len(micro_batches) == 1
    cuda_graphs = args.cuda_graphs
    if cuda_graphs is None:
        cuda_graphs = can_use_graphs
    if cuda_graphs and not can_use_graphs:
        raise ValueError("--cuda-graphs: this needs a GPU, --compile, no micro-batches, and a "
                         "batch that the processes share evenly")
    return compile_losses, cuda_graphs


def prepare_models(models, init, batches, bf16, device):
    """Start the student from the teacher, if --init says so. Move the models to the device, and
    with bf16 cast the teacher's linear layers to bfloat16."""
    teacher = models.get("teacher")
    if init == "teacher":
        sample = batches.sequences(range(min(256, batches.count)))
        start_from_teacher(models["student"], teacher, torch.from_numpy(sample))
    for model in models.values():
        model.to(device)
    if teacher is not None and bf16:
        cast_linear_layers(teacher)


@contextmanager
def explaining_failures():
    """Explain an error in the with block: if there was not enough memory, or if torch.compile has
    failed, raise a ValueError that says what may help."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_about_memory(error):
            raise ValueError("there is not enough memory; a step needs less with a smaller "
                             "--micro-batch-size (0: the whole batch at once)") from error
        # If torch.compile fails, it raises a TorchDynamoException, which is a kind of RuntimeError.
        # The usual reason is that the machine has no C++ compiler.
        if isinstance(error, torch._dynamo.exc.TorchDynamoException):
            raise ValueError(f"torch.compile failed: {one_line(error):.300}; --no-compile does "
                             "without it") from error
        raise


def print_plan(recipe, lr, distillation, device):
    """Print what will be trained, and how."""
    print(f"recipe   {recipe}, learning rate {lr:g}")
    precision = "bfloat16" if distillation.bf16 else "float32"
    print(f"device   {device}, {precision}")
    if distillation.pairs:
        # What is printed counts from 1.
        pairs = " ".join(f"{r + 1}-{number + 1}" for r, number in distillation.pairs)
        print(f"layers   {pairs} (student-teacher)")
    terms = " + ".join(f"{weight:g} {name}" for name, weight in distillation.loss_weights.items())
    print(f"loss     {terms}")


def print_duration(distillation, num_steps, is_compiled):
    """Measure a step, and print how long num_steps of them will take."""
    if is_compiled:
        print("compiling the step, which takes a minute or so", flush=True)
    minutes = seconds_of_a_step(distillation) * num_steps / 60
    print(f"steps    {num_steps:,} of {distillation.tokens_per_step:,} tokens: "
          f"{minutes:.1f} min", flush=True)


def seconds_of_a_step(distillation):
    """Make four passes, forward and backward, over the batch of step 0 -> seconds of the fastest.
    If a pass after the first takes over ten seconds, it is the last. The parameters do not change.
    FloatingPointError if the losses of this process are not finite."""
    distillation.student.train()                         # as in the steps that follow
    fastest = math.inf
    for pass_number in measuring_bar(range(4)):          # the first passes are slower
        begin = time.perf_counter()
        sum_of_losses = 0.0
        for losses in distillation.losses_of_micro_batches(0):
            loss = sum(losses.values())
            loss.backward()
            sum_of_losses += loss.detach()
        distillation.student.zero_grad(set_to_none=True)
        sum_of_losses = float(sum_of_losses)             # this waits for a GPU
        seconds = time.perf_counter() - begin
        fastest = min(fastest, seconds)
        if pass_number > 0 and seconds > 10:             # in pass 0 torch may have compiled
            break
    if not math.isfinite(sum_of_losses):
        raise FloatingPointError(f"before the first step the sum of the losses is {sum_of_losses}")
    return fastest


def report_results(models, tokenizer, valid_batches, bf16, out, processes):
    """Measure the models after the training, write results.json, and print scores and samples."""
    results = measure_models(models, valid_batches, bf16, each_recursion=True)
    if processes.rank == 0:
        write_json(os.path.join(out, "results.json"), results)
    print_scores(results)
    print_samples(models, tokenizer, valid_batches, bf16)
    print(f"\nThe student is in {out}. Next: python finetune.py --model {shlex.quote(out)}")


@torch.inference_mode()
def print_samples(models, tokenizer, valid_batches, bf16):
    """Print what each model predicts at a masked place in up to four held-out texts."""
    if models["student"].head is None:
        return
    last = valid_batches.count - 1
    # These are four sequences, evenly spread. If the held-out part is short, there are fewer.
    numbers = sorted({0, last // 3, 2 * last // 3, last})
    for sequence in valid_batches.sequences(numbers):
        ids = sequence.tolist()
        words = [tokenizer.decode([token]) for token in ids]
        place = place_to_mask(words)
        before = tokenizer.decode(ids[max(0, place - 8):place])
        after = tokenizer.decode(ids[place + 1:place + 9])
        print()
        print(printable(f"{before} [MASK] {after}   ({words[place]})"))
        ids[place] = tokenizer.mask_id
        for name, model in models.items():
            if model.head is not None:                   # a teacher may have none
                best_words = predicted_words(model, tokenizer, ids, place, bf16)
                print(f"    {name}: {printable(best_words)}")


def predicted_words(model, tokenizer, ids, place, bf16):
    """Return the four words, the most probable first, that a model predicts at a masked place of
    the ids, a list of token numbers. Special tokens are no words."""
    model.eval()
    device = device_of(model)
    with autocast(device, bf16):
        hidden, _ = model(torch.tensor([ids], device=device))
        logits = model.predict(hidden[-1][0, place])                          # (V,)
    logits[tokenizer.special_ids.tolist()] = -math.inf
    best = logits.topk(4).indices.tolist()
    return " ".join(tokenizer.decode([token]) for token in best)


def place_to_mask(words):
    """Return the place of the word to mask: the word nearest to the middle that has at least 4
    characters. If there is none, a shorter word is taken.

    words: the decoded tokens of a text; special tokens are "", and the ## before a piece of a word
        does not count
    """
    middle = len(words) // 2
    for min_length in (4, 1):
        places = [place for place, word in enumerate(words) if len(word.strip("#")) >= min_length]
        if places:
            return min(places, key=lambda place: abs(place - middle))
    return middle                                        # all tokens are special


def main(argv=None):
    """Run the command line argv (None: that of the program) -> exit status: see run_command."""
    def action():
        run(arguments(argv), given_flags(argv))
        leave_processes()
    return run_command("distill.py", action)


if __name__ == "__main__":
    sys.exit(main())
