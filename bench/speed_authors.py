"""The authors' variants for bench/speed.py; speed_worker.py says how they are asked.

They are made of the module in the authors' repository (github.com/nlpie-research/MiniALBERT), which
has to be on PYTHONPATH, and run with the version of transformers that it needs, 4.30.
"""
import json
import os
import sys

# Nothing here reads text. transformers 4.30 wants an old tokenizers, which cannot be had for newer
# versions of Python; it does without one if none is to be found.
sys.modules["tokenizers"] = None

import minialbert_modeling
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file

from speed_worker import forward_measure, seconds_of, serve


def student_config(shape, adapters=True, **others):
    """Make the config of a student as the authors' checkpoints have it.

    Two fields are not ALBERT's: whether there are adapters, and by what factor an adapter is
    narrower than C.
    """
    config = transformers.AlbertConfig(
        vocab_size=shape.V, embedding_size=shape.E, hidden_size=shape.C,
        num_hidden_layers=shape.R, num_attention_heads=shape.H, intermediate_size=shape.F,
        hidden_act="gelu", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, **others)
    config.use_adapter = adapters
    config.reduction_factor = 16
    return config


def make_optimizer(model):
    """Make the AdamW of transformers, which the authors' Trainer uses. It updates one parameter
    after the other, in a loop."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return transformers.AdamW(trained, lr=1e-4, weight_decay=0.01, no_deprecation_warning=True)


def update(model, optimizer):
    """Clip the gradients and update the parameters.

    In each step the Trainer looks whether the loss is nan, and for this it waits for a GPU. Reading
    the norm of the gradients here waits, too.
    """
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


# ---- A step of distillation -------------------------------------------------------------

def authors_step(shape, bf16=False, device="cpu"):
    """Build a step that does what the authors' training wrapper does. It was written anew from
    their code.

    As there, the teacher has dropout; the losses are computed from copies that masked_select makes;
    logits are computed at all places; the embedding loss is computed, but not used. The weights of
    the losses are theirs, too. Ours are others, but that makes no difference to the time.
    """
    torch.manual_seed(0)
    device = torch.device(device)
    teacher_config = transformers.BertConfig(
        vocab_size=shape.V, hidden_size=shape.C, num_hidden_layers=shape.L,
        num_attention_heads=shape.H, intermediate_size=shape.F)
    teacher = transformers.BertForMaskedLM(teacher_config)
    teacher.requires_grad_(False)
    teacher.train()
    teacher.to(device)
    student = minialbert_modeling.MiniAlbertForMaskedLM(student_config(shape))
    student.train()
    student.to(device)
    optimizer = make_optimizer(student)
    layers_per_recursion = shape.L // shape.R
    ids = torch.randint(5, shape.V, (shape.B, shape.T)).to(device)
    mask = torch.ones_like(ids)
    is_masked = torch.zeros_like(ids, dtype=torch.bool)
    is_masked[:, 1:1 + shape.num_masked] = True          # as many places as ours

    def total_loss():
        """Compute the weighted sum of the losses."""
        masked_ids = ids.masked_fill(is_masked, 3)
        labels = ids.masked_fill(~is_masked, -100)
        of_student = student(masked_ids, mask, labels=labels)
        with torch.no_grad():
            of_teacher = teacher(masked_ids, mask, output_hidden_states=True,
                                 output_attentions=True)
        # The embedding loss, which is not used.
        hidden_loss(of_student.hidden_states[0], of_teacher.hidden_states[0], mask)
        # With L = 12 and R = 6 every second layer is matched. Counted from 0 these are the layers
        # 1, 3, ..., 11. In the list of hidden states the embeddings come first, so there the
        # outputs of these layers have the numbers 2, 4, ..., 12.
        first_matched = layers_per_recursion - 1
        teacher_maps = of_teacher.attentions[first_matched::layers_per_recursion]
        attention = 0
        for student_map, teacher_map in zip(of_student.attentions, teacher_maps):
            attention = attention + attention_loss(student_map, teacher_map, mask)
        teacher_hidden = of_teacher.hidden_states[first_matched + 1::layers_per_recursion]
        hidden = 0
        for student_states, teacher_states in zip(of_student.hidden_states[1:], teacher_hidden):
            hidden = hidden + hidden_loss(student_states, teacher_states, mask)
        output = output_loss(of_student.logits, of_teacher.logits, is_masked)
        return of_student.loss + 3 * (attention + hidden) + 5 * output

    def step():
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = total_loss()
        loss.backward()
        update(student, optimizer)
        if device.type == "cuda":
            torch.cuda.synchronize()

    def measure():
        seconds = seconds_of(step)
        answer = {"seconds": seconds, "rate": shape.B / seconds}
        if device.type == "cuda":
            answer["GPU bytes"] = torch.cuda.max_memory_allocated()
        return answer

    return measure


def select(x, where):
    """Copy the rows of x (..., n) where `where` (..., 1) is true -> (N, n)."""
    selected = torch.masked_select(x, where.expand_as(x).bool())
    return selected.view(-1, x.shape[-1])


def hidden_loss(student, teacher, mask):
    """Compute the mean of 1 - cosine of hidden states (B, T, C) at real tokens; mask (B, T)."""
    student = select(student, mask[..., None])
    teacher = select(teacher, mask[..., None])
    ones = torch.ones(len(student), device=student.device)
    return F.cosine_embedding_loss(student, teacher, ones)


def attention_loss(student, teacher, mask):
    """Compute the divergence of attention maps (B, H, T, T) at real tokens; mask (B, T).

    It is the mean over the rows of KL(teacher || student), divided by T: reduction="mean" divides
    by the number of all elements, and a row has T of them. Our attention loss is without this
    division. So their weight of 3 is one of 3 / T for ours.
    """
    num_heads = student.shape[1]
    where = mask[:, None].repeat(1, num_heads, 1)[..., None]                  # (B, H, T, 1)
    student = select(student, where) + 1e-12
    teacher = select(teacher, where) + 1e-12
    return F.kl_div(student.log(), teacher, reduction="mean")


def output_loss(student, teacher, is_masked):
    """Compute the mean of KL(teacher || student) of logits (B, T, V) at the masked places."""
    student = select(student, is_masked[..., None])
    teacher = select(teacher, is_masked[..., None])
    log_student = student.log_softmax(-1)
    return F.kl_div(log_student, teacher.softmax(-1), reduction="batchmean")


# ---- Inference and tuning ---------------------------------------------------------------

def authors_inference(path, shape):
    """Build the authors' model from a student that we saved in the folder path.

    Their names differ from those in our file by a prefix and by the name of the projection.
    """
    tensors = load_file(os.path.join(path, "model.safetensors"))
    has_adapters = any("adapters" in name for name in tensors)
    config = student_config(shape, has_adapters)
    torch.manual_seed(0)
    model = minialbert_modeling.MiniAlbertModel(config)
    state = model.state_dict()                           # it has a pooler that ours lacks
    for name, tensor in tensors.items():
        if "adapters" not in name:
            name = f"albert.{name}"
        name = name.replace("albert.encoder.embedding_hidden_mapping_in", "projector")
        state[name] = tensor
    model.load_state_dict(state)
    return forward_measure(model, shape.V, needs_mask=True)


def authors_tuning(mode, sentences, shape):
    """Build an epoch of fine-tuning that does what the Trainer of transformers does in the authors'
    script. The Trainer itself is not run. The sentences come in random order, and each batch is
    padded to its longest sentence.

    mode: what is trained: "all" or "adapters" (and the head)
    sentences: a file of [[token numbers, label], ...]
    """
    config = student_config(shape, num_labels=2, classifier_dropout=None)
    torch.manual_seed(0)
    model = minialbert_modeling.MiniAlbertForSequenceClassification(config)
    model.train()
    if mode == "adapters":
        model.trainAdaptersOnly()
    optimizer = make_optimizer(model)
    with open(sentences, encoding="utf-8") as file:
        rows = [(torch.tensor(ids), label) for ids, label in json.load(file)]

    def epoch():
        order = torch.randperm(len(rows))
        for numbers in order.split(32):                  # of the sentences in a batch
            texts = [rows[i][0] for i in numbers]
            labels = torch.tensor([rows[i][1] for i in numbers])
            ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)    # (B, T)
            mask = (ids > 0).long()                      # pad_sequence fills up with 0
            segments = torch.zeros_like(ids)
            loss = model(ids, mask, segments, labels=labels).loss
            loss.backward()
            update(model, optimizer)

    def measure():
        return {"rate": len(rows) / seconds_of(epoch)}

    return measure


if __name__ == "__main__":
    serve([authors_step, authors_inference, authors_tuning])
