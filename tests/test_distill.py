"""distill.py: each loss against sums written out and the authors' formulas, the start from the
teacher, the training loop stopped, killed, resumed and split, the command and its refusals."""
import argparse
import ctypes
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import distill
from data import tokenise
from distill import (Distillation, attention_loss, evaluate, hidden_loss, match_layers, mlm_loss,
                     output_loss, start_from_teacher)
from minialbert import Config, MiniALBERT, load, read_json, read_safetensors, save

B, T, C, H, V, E, F, L = 3, 16, 24, 3, 101, 12, 40, 4
WORDS = [f"w{i}" for i in range(90)]
TEACHER = Config(V, C, C, L, L, H, F, 0.1, 0.1, max_position_embeddings=32)
STUDENT = replace(TEACHER, embedding_size=E, num_hidden_layers=2, num_hidden_groups=1,
                  adapter_size=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def model(config, seed=1, head=True):
    """A model no norm or bias of which is still as it was made."""
    torch.manual_seed(seed)
    made = MiniALBERT(config, head)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return made


class Batches:
    """Batches as data.py's, without text: ids, places and labels as a function of the step."""
    batch_size, T, count = 4, 16, 40

    def __init__(self, masked=3):
        self.masked = masked

    def __call__(self, step):
        rng = np.random.default_rng(step)
        ids = rng.integers(5, V, (4, 16))
        places = np.sort(rng.permutation(4 * 16)[:self.masked])
        return ids, places, rng.integers(5, V, self.masked)


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A folder with a corpus, a teacher with its tokenizer, and the same teacher without a head."""
    folder, rng = tmp_path_factory.mktemp("toy"), random.Random(0)
    with open(folder / "corpus.txt", "w") as corpus:
        for _ in range(120):
            for begin in (rng.randrange(90), rng.randrange(90), rng.randrange(90)):
                line = [WORDS[(begin + 7 * i) % 90] for i in range(11)]
                corpus.write(" ".join(line) + " .\n")
            corpus.write("\n")
    for name, head in (("teacher", True), ("headless", False)):
        save(model(TEACHER, head=head), folder / name)
        (folder / name / "vocab.txt").write_text(
            "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS]) + "\n")
    return folder


def flags(toy, out, *more):
    usual = {"teacher": toy / "teacher", "corpus": toy / "corpus.txt", "cache": toy / "cache",
             "out": out, "length": 16, "batch-size": 4, "steps": 12, "warmup": 3, "lr": 0.01,
             "dropout": 0.1, "log-every": 1, "eval-every": 5, "save-every": 4, "device": "cpu"}
    shape = {} if "--student" in more else {"num-hidden-layers": 2}
    return [*(f"--{flag}={value}" for flag, value in (usual | shape).items()), *map(str, more)]


def alone(toy, *more):
    return ["--teacher", "none", "--tokenizer", f"{toy}/teacher", "--hidden-size", "24",
            "--num-attention-heads", "3", *more]


@pytest.fixture(scope="session")
def whole(toy, tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert distill.main(flags(toy, out)) is None
    return out


def weights(out):
    return (out / "model.safetensors").read_bytes()


def log(out):
    """The lines of log.jsonl, without what the clock decides."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]


def metadata(out):
    return read_safetensors(out / "training.safetensors")[1]


def every(monkeypatch, act):
    """Calls act(step) before each step of a run, but not before the four rehearsals."""
    usual, calls = Distillation.__call__, []

    def call(self, step):
        calls.append(step)
        if len(calls) > 4:
            act(step)
        return usual(self, step)
    monkeypatch.setattr(Distillation, "__call__", call)


# ---- The losses ----------------------------------------------------------------------------------


def distributions(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(3)


def test_attention_loss_is_the_sum_written_out():
    student, teacher = (distributions((B, H, 5, 5), seed).log_softmax(-1) for seed in (1, 2))
    total = 0.0
    for p, q in zip(*(x.double().exp().numpy().reshape(-1, 5) for x in (teacher, student))):
        total += sum(p[i] * math.log(p[i] / q[i]) for i in range(5))
    assert attention_loss(student, teacher).item() == pytest.approx(total / (H * 5), rel=1e-5)


def test_hidden_loss_is_the_sum_written_out():
    student, teacher = (distributions((B, 5, C), seed) for seed in (1, 2))
    total = 0.0
    for x, y in zip(*(h.double().numpy().reshape(-1, C) for h in (student, teacher))):
        total += 1 - sum(x * y) / math.sqrt(sum(x * x) * sum(y * y))
    assert hidden_loss(student, teacher).item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_output_loss_is_the_sum_written_out(temperature):
    student, teacher = (distributions((7, V), seed) for seed in (1, 2))
    total = 0.0
    for s, t in zip(student.double().numpy(), teacher.double().numpy()):
        q, p = (np.exp(x / temperature) / np.exp(x / temperature).sum() for x in (s, t))
        total += temperature ** 2 * sum(p[v] * math.log(p[v] / q[v]) for v in range(V))
    assert output_loss(student, teacher, temperature).item() == pytest.approx(total, rel=1e-5)


def test_mlm_loss_is_the_sum_written_out():
    logits, labels = distributions((7, V), 1), torch.arange(7) * 11
    p = np.exp(logits.double().numpy())
    total = -sum(math.log(p[m, labels[m]] / p[m].sum()) for m in range(7))
    assert mlm_loss(logits, labels).item() == pytest.approx(total, rel=1e-5)


@pytest.mark.filterwarnings("ignore:reduction")              # torch's, about what "mean" means
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_over_their_numbers_the_losses_are_the_authors(temperature):
    """KLDivLoss, all elements' mean; CosineEmbeddingLoss; KLDivLoss, the mean over the places."""
    student, teacher = (distributions((B, H, T, T), seed).log_softmax(-1) for seed in (1, 2))
    theirs = nn.KLDivLoss(reduction="mean")(student, teacher.exp())
    ours = attention_loss(student, teacher) / (B * T)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    student, teacher = (distributions((B, T, C), seed) for seed in (1, 2))
    theirs = nn.CosineEmbeddingLoss()(student.view(-1, C), teacher.view(-1, C), torch.ones(B * T))
    ours = hidden_loss(student, teacher) / (B * T)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    student, teacher = (distributions((7, V), seed) for seed in (1, 2))
    theirs = temperature ** 2 * nn.KLDivLoss(reduction="batchmean")(
        (student / temperature).log_softmax(-1), (teacher / temperature).softmax(-1))
    ours = output_loss(student, teacher, temperature) / 7
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_a_loss_of_equals_is_zero():
    maps, hidden = distributions((B, H, T, T), 1).log_softmax(-1), distributions((B, T, C), 2)
    logits = distributions((7, V), 3)
    assert abs(attention_loss(maps, maps)) < 1e-4 and abs(hidden_loss(hidden, hidden)) < 1e-4
    assert abs(output_loss(logits, logits, 3.0)) < 1e-4


def test_the_divergences_are_finite_for_certainties():
    sure = torch.full((1, 1, 2, 2), -1e9)
    sure[..., 0] = 0.0
    assert attention_loss(sure.log_softmax(-1), sure.flip(-1).log_softmax(-1)).isfinite()
    assert output_loss(sure[0, 0], sure[0, 0].flip(-1)).isfinite()
    assert attention_loss(sure.log_softmax(-1), sure.log_softmax(-1)) == 0
    for dtype in (torch.float32, torch.bfloat16):        # as a mask leaves them, and as autocast
        maps, logits = (x.detach().to(dtype, copy=True).requires_grad_()
                        for x in (sure, sure[0, 0]))
        loss = attention_loss(maps.log_softmax(-1), sure.flip(-1).to(dtype).log_softmax(-1))
        loss = loss + output_loss(logits, sure[0, 0].flip(-1).to(dtype))
        loss.backward()
        assert loss.isfinite() and maps.grad.isfinite().all() and logits.grad.isfinite().all()


def test_the_square_of_the_temperature_keeps_the_gradient_of_its_size():
    sizes = []
    for temperature in (50.0, 200.0):
        student, teacher = (distributions((7, V), seed) for seed in (1, 2))
        student.requires_grad_()
        output_loss(student, teacher, temperature).backward()
        sizes.append(student.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_recursions_match_evenly_spread_layers_and_the_last():
    assert match_layers(6, 12) == [(r, 2 * r + 1) for r in range(6)]     # the authors' 2, ..., 12
    assert match_layers(2, 6) == [(0, 2), (1, 5)]
    assert match_layers(4, 4) == [(r, r) for r in range(4)]
    with pytest.raises(ValueError, match="5 recursions.*12 layers"):
        match_layers(5, 12)


# ---- The terms of a step -------------------------------------------------------------------------


def distillation(student, teacher, masked=3, weights=distill.WEIGHTS | {"embedding": 0.5}, **more):
    return Distillation(student, teacher, Batches(masked), weights, **more)


def gradients(student, losses, step=0):
    student.zero_grad()
    totals = {}
    for terms in losses(step):
        sum(losses.weights[term] * value for term, value in terms.items()).backward()
        totals |= {term: totals.get(term, 0) + value.item() for term, value in terms.items()}
    return {name: p.grad.clone() for name, p in student.named_parameters()}, totals


def test_the_terms_are_the_losses_of_matched_layers_and_masked_places():
    student, teacher = model(STUDENT).eval(), model(TEACHER, 2).eval()
    losses = distillation(student, teacher, temperature=2.0)
    ids, places, labels = (torch.from_numpy(x) for x in losses.batches(0))
    with torch.no_grad():
        ours, maps = student(ids, maps=[0, 1])
        theirs, their_maps = teacher(ids, maps=[1, 3])
        logits, their_logits = (made.predict(h[-1].reshape(64, C)[places])
                                for made, h in ((student, ours), (teacher, theirs)))
        expected = {
            "mlm": nn.functional.cross_entropy(logits, labels),
            "attention": sum(attention_loss(maps[r], their_maps[2 * r + 1]) for r in (0, 1)) / 64,
            "hidden": sum(hidden_loss(ours[r], theirs[i]) for r, i in ((1, 2), (2, 4))) / 64,
            "output": output_loss(logits, their_logits, 2.0) / 3,
            "embedding": hidden_loss(ours[0], theirs[0]) / 64}
    found = gradients(student, losses)[1]
    assert found == pytest.approx({term: loss.item() for term, loss in expected.items()}, rel=1e-5)
    assert losses.tokens == 64


@pytest.mark.parametrize("size", [1, 2, 3])              # 3 does not divide the batch of 4
def test_micro_batches_do_not_change_the_gradient(size):
    student, teacher = model(STUDENT), model(TEACHER, 2)
    whole, terms = gradients(student, distillation(student, teacher, 7))
    split, shares = gradients(student, distillation(student, teacher, 7, micro_batch_size=size))
    assert shares == pytest.approx(terms, rel=1e-5) and whole.keys() == split.keys()
    for name, gradient in whole.items():
        assert (gradient - split[name]).norm() <= 1e-6 * max(1, gradient.norm()), name


def test_the_ranks_shares_add_up_to_the_gradient_of_one_process():
    student, teacher = model(STUDENT), model(TEACHER, 2)
    whole, terms = gradients(student, distillation(student, teacher, 7))
    ranks = [gradients(student, distillation(student, teacher, 7, rank=rank, world=3))
             for rank in range(3)]
    for name, gradient in whole.items():
        total = sum(share[name] for share, _ in ranks)
        assert (total - gradient).norm() <= 1e-6 * max(1, gradient.norm()), name
    for term, value in terms.items():
        assert sum(share[term] for _, share in ranks) == pytest.approx(value, rel=1e-5)


def test_a_batch_without_masked_places_adds_nothing():
    student = model(STUDENT)
    found, terms = gradients(student, distillation(student, model(TEACHER, 2), masked=0))
    assert terms["mlm"] == terms["output"] == 0 and terms["hidden"] > 0
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_the_teacher_learns_nothing_and_never_drops_anything():
    """The authors' teacher was put into train mode with the student, so its answers were noisy."""
    teacher = model(replace(TEACHER, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5), 2)
    student = model(replace(STUDENT, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5))
    assert teacher.training
    losses, answers = distillation(student, teacher), []
    teacher.register_forward_hook(lambda module, _, output: answers.append(output[0][-1]))
    for train in (True, False, True):
        student.train(train)
        gradients(student, losses)
        assert not teacher.training
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_no_more_of_the_teacher_is_run_than_the_losses_need():
    teacher, asked = model(TEACHER, 2), []
    usual, usual_predict = teacher.forward, teacher.predict
    teacher.forward = lambda ids, maps: asked.append(f"{maps}") or usual(ids, maps=maps)
    teacher.predict = lambda h: asked.append("predict") or usual_predict(h)
    for term, expected in (("mlm", []), ("hidden", ["[]"]), ("attention", ["[1, 3]"]),
                           ("output", ["[]", "predict"])):
        asked.clear()
        list(distillation(model(STUDENT), teacher, weights={term: 1.0})(0))
        assert asked == expected, term


def test_a_shared_layer_overfits_one_batch():
    student, teacher = model(STUDENT), model(TEACHER, 2)
    losses, values = distillation(student, teacher, masked=9), []
    optimizer = torch.optim.AdamW(student.parameters(), 0.01)
    for _ in range(80):
        optimizer.zero_grad()
        terms, = losses(0)
        loss = sum(losses.weights[term] * value for term, value in terms.items())
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.35 * values[0]


def test_evaluation_is_the_accuracy_and_the_loss_of_masked_tokens():
    student, batches = model(STUDENT).train(), Batches(5)
    right, loss = 0, 0.0
    for step in range(10):                               # 40 sequences
        ids, places, labels = (torch.from_numpy(x) for x in batches(step))
        with torch.no_grad():
            logits = student.predict(student(ids)[0][-1].reshape(64, C)[places])
        right += (logits.argmax(-1) == labels).sum().item()
        loss += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
    expected = {"accuracy": right / 50, "loss": loss / 50}
    assert evaluate(student, batches) == pytest.approx(expected, rel=1e-5)
    assert evaluate(student, Batches(0)) == {"accuracy": 0, "loss": 0}


# ---- The start -----------------------------------------------------------------------------------


def test_a_start_without_anything_to_lose_is_the_teacher_itself():
    teacher = model(TEACHER).eval()
    student = model(replace(TEACHER), seed=5).eval()     # E = C, nothing shared, no adapters
    ids = torch.randint(5, V, (B, T))
    start_from_teacher(student, teacher, ids)
    with torch.no_grad():
        (ours, _), (theirs, _) = student(ids), teacher(ids)
        assert all(torch.equal(x, y) for x, y in zip(ours, theirs))
        assert torch.equal(student.predict(ours[-1]), teacher.predict(theirs[-1]))


def test_a_start_finds_the_teachers_embeddings_again_where_they_fit_into_E():
    teacher, errors = model(TEACHER).eval(), {}
    ids = torch.randint(5, V, (64, T), generator=torch.Generator().manual_seed(0))
    for rank in (E - 1, C):
        with torch.no_grad():
            tables = teacher.embeddings
            low = torch.randn(rank, C, generator=torch.Generator().manual_seed(1))
            for table in (tables.word, tables.position, tables.segment):
                table.weight.copy_(torch.randn(len(table.weight), rank) @ low)
            student = MiniALBERT(STUDENT).eval()
            start_from_teacher(student, teacher, ids)
            loss = hidden_loss(student.embeddings(ids), teacher.embeddings(ids))
            errors[rank] = loss.item() / (64 * T)
    assert errors[E - 1] < 0.01 < errors[C] < 0.5


@pytest.mark.parametrize("groups, stand_for", [(1, [[1, 2]]), (2, [[0, 1], [2, 3]]),
                                               (4, [[0], [1], [2], [3]])])
def test_a_layer_starts_as_the_mean_of_the_middle_ones_it_stands_for(groups, stand_for):
    teacher = model(TEACHER)
    student = model(replace(STUDENT, num_hidden_layers=4, num_hidden_groups=groups))
    start_from_teacher(student, teacher, torch.randint(5, V, (32, T)))
    for layer, numbers in zip(student.layers, stand_for, strict=True):
        mean = sum(teacher.layers[i].output.weight for i in numbers) / len(numbers)
        assert torch.allclose(layer.output.weight, mean, atol=1e-7)
    assert torch.equal(student.head.bias, teacher.head.bias)


def test_the_random_start_is_plain_noise(toy, tmp_path):
    distill.main(flags(toy, tmp_path / "plain", "--init", "random", "--lr", 0, "--adapter-size", 8))
    plain = load(tmp_path / "plain")
    for tensor in (plain.attention_adapters[0].up.weight, plain.layers[0].attention.query.weight,
                   plain.embeddings.position.weight, plain.embeddings.word.weight):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.2)
    assert plain.embeddings.position.weight[0].std() > 0.01          # a sinusoid is 0 or 1 there


# ---- The loop: stopped, killed, resumed ----------------------------------------------------------


def stopped(toy, out, monkeypatch, number, *more):
    with monkeypatch.context() as patch:
        every(patch, lambda step: os.kill(os.getpid(), number) if step == 4 else None)
        with pytest.raises(SystemExit) as exit:
            distill.main(flags(toy, out, *more))
    return exit.value.code


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_saves_and_the_resumed_run_ends_as_if_there_was_none(
        toy, whole, tmp_path, monkeypatch, capsys, number, status):
    before = signal.getsignal(number)
    assert stopped(toy, tmp_path / "run", monkeypatch, number) == status
    assert signal.getsignal(number) is before
    assert metadata(tmp_path / "run")["step"] == "5" and "--resume" in capsys.readouterr().out
    load(tmp_path / "run")
    with open(tmp_path / "run" / "log.jsonl", "a") as file:
        file.write('{"step": 6, "lo')                    # as a run killed meanwhile would leave
    distill.main(flags(toy, tmp_path / "run", "--resume"))
    assert weights(tmp_path / "run") == weights(whole)
    assert log(tmp_path / "run") == log(whole)
    assert sorted(os.listdir(tmp_path / "run")) == sorted(os.listdir(whole))


ROOT = os.path.dirname(os.path.abspath(distill.__file__))
KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
import distill
usual, saved = os.replace, []
def replace(new, old):                                   # the second is written, but not in place
    saved.extend([old] if old.endswith("training.safetensors") else [])
    if len(saved) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    usual(new, old)
os.replace = replace
torch.set_num_threads(1)
distill.main(sys.argv[2:])
"""


def test_a_killed_run_resumed_ends_as_one_that_was_not(toy, whole, tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, ROOT, *flags(toy, tmp_path / "run")],
                            capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert metadata(tmp_path / "run")["step"] == "4" and len(log(tmp_path / "run")) == 8
    assert distill.main(flags(toy, tmp_path / "run", "--resume")) is None
    assert weights(tmp_path / "run") == weights(whole) and log(tmp_path / "run") == log(whole)
    assert sorted(os.listdir(tmp_path / "run")) == sorted(os.listdir(whole))


def test_a_run_stopped_before_its_first_checkpoint_begins_anew(toy, whole, tmp_path):
    os.makedirs(tmp_path / "run")
    (tmp_path / "run" / "log.jsonl").write_text('{"step": 1}\n{"st')
    assert distill.main(flags(toy, tmp_path / "run", "--resume")) is None
    assert weights(tmp_path / "run") == weights(whole) and log(tmp_path / "run") == log(whole)


def test_a_finished_run_resumed_stays_as_it_is(toy, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    assert distill.main(flags(toy, tmp_path / "run", "--resume")) is None
    assert weights(tmp_path / "run") == weights(whole) and log(tmp_path / "run") == log(whole)


def test_biases_and_norms_do_not_decay():
    student = model(STUDENT)
    student.head.requires_grad_(False)                   # nor does what is frozen
    optimizer, state = distill.make_optimizer(student, distill.argparse.Namespace(weight_decay=0.3))
    names = {p: name for name, p in student.named_parameters()}
    groups = [(g["weight_decay"], p) for g in optimizer.param_groups for p in g["params"]]
    decay = {names[p]: rate for rate, p in groups}
    assert decay == {name: 0.3 * (p.ndim > 1) for p, name in names.items() if "head" not in name}
    assert {f"model.{name}" for name in decay} == {name for name in state if "model" in name}


def test_each_step_drops_other_units(toy, tmp_path, monkeypatch):
    usual, drawn = Distillation.__call__, []

    def call(self, step):
        drawn.append((self.student.training, torch.rand(()).item()))
        return usual(self, step)
    monkeypatch.setattr(Distillation, "__call__", call)
    assert distill.main(flags(toy, tmp_path / "run")) is None
    rehearsals, steps = drawn[:4], drawn[4:]
    assert len(rehearsals) + 12 == len(drawn)
    assert len(set(steps)) == 12 and all(training for training, _ in steps)


def test_evaluating_logging_and_saving_change_no_weight(toy, whole, tmp_path):
    rare = ["--log-every", 50, "--eval-every", 0, "--save-every", 50]
    assert distill.main(flags(toy, tmp_path / "run", *rare)) is None
    assert weights(tmp_path / "run") == weights(whole)
    assert log(tmp_path / "run") == log(whole)[-1:]


def test_the_log_has_each_term_by_itself(whole):
    lines = log(whole)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["step"] for line in lines if "valid_accuracy" in line] == [5, 10, 12]
    for line in lines:
        parts = sum(weight * line[term] for term, weight in distill.WEIGHTS.items() if weight)
        assert line["loss"] == pytest.approx(parts, rel=1e-5) and line["gradient_norm"] > 0
    rates = [line["lr"] for line in lines]               # 3 steps of warm-up, then down to 1 / 9
    assert rates == pytest.approx([0.01 * min(s / 3, (13 - s) / 9) for s in range(1, 13)])


def test_a_resume_with_other_facts_is_refused_and_says_which(toy, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    shutil.copytree(toy / "teacher", tmp_path / "teacher")
    save(model(TEACHER, seed=9), tmp_path / "teacher")
    other = ["--lr", 0.5, "--seed", 3, "--hidden-weight", 1, "--teacher", tmp_path / "teacher"]
    assert distill.main(flags(toy, tmp_path / "run", "--resume", *other)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "'lr': (0.01, 0.5)" in error and "'seed': (0, 3)" in error
    assert "'weights'" in error and "'teacher'" in error
    assert not any(fact in error for fact in ("steps", "shape", "corpus", "tokenizer"))
    assert weights(tmp_path / "run") == weights(whole) and log(tmp_path / "run") == log(whole)


def test_a_run_is_not_lost_unless_it_is_said(toy, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    assert distill.main(flags(toy, tmp_path / "run", "--seed", 1)) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert weights(tmp_path / "run") == weights(whole) and log(tmp_path / "run") == log(whole)
    assert distill.main(flags(toy, tmp_path / "run", "--seed", 1, "--overwrite")) is None
    assert weights(tmp_path / "run") != weights(whole) and len(log(tmp_path / "run")) == 12


def test_a_model_that_is_no_run_is_not_lost_to_a_resume(toy, tmp_path, capsys):
    shutil.copytree(toy / "teacher", tmp_path / "model")
    assert distill.main(flags(toy, tmp_path / "model", "--resume")) == 2
    assert "holds a model" in capsys.readouterr().err
    assert weights(tmp_path / "model") == weights(toy / "teacher")


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(
        toy, whole, tmp_path, monkeypatch, capsys):
    usual = distill.attention_loss
    with monkeypatch.context() as patch:
        every(patch, lambda step: patch.setattr(
            distill, "attention_loss", lambda s, t: usual(s, t) * (math.nan if step == 6 else 1)))
        assert distill.main(flags(toy, tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    assert all(fact in error for fact in ("step 7,", "attention nan", "learning rate 0.00666"))
    assert metadata(tmp_path / "run")["step"] == "4" and load(tmp_path / "run")
    assert distill.main(flags(toy, tmp_path / "run", "--resume")) is None
    assert weights(tmp_path / "run") == weights(whole) and log(tmp_path / "run") == log(whole)


def test_the_handlers_of_signals_are_back_after_an_error(toy, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def burst(step):
        assert signal.getsignal(signal.SIGINT) is not before[0]
        raise RuntimeError("out of memory")
    every(monkeypatch, burst)
    with pytest.raises(RuntimeError, match="out of memory"):
        distill.main(flags(toy, tmp_path / "run"))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_compiled_step_is_the_plain_one(toy, tmp_path, monkeypatch):
    """As torch.compile traces it, without the compiler that not every machine has."""
    usual, traced = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda f: traced.append(f) or usual(f, backend="eager"))
    for out, more in (("plain", []), ("compiled", ["--compile"])):
        assert distill.main(flags(toy, tmp_path / out, "--steps", 6, *more)) is None
    assert len(traced) == 1
    for a, b in zip(log(tmp_path / "plain"), log(tmp_path / "compiled"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's malloc alone")
def test_memory_that_is_freed_is_not_asked_for_again():
    distill.join(argparse.Namespace(batch_size=1, device="cpu", bf16=None))
    faults = []
    for _ in range(30):                                  # until a block of the size is to be had
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)                                # 64 MB, 16,384 pages; freed at once
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert max(faults[-10:]) < 1000


def test_bfloat16_is_near_float32_but_not_it_and_is_resumed_bit_for_bit(
        toy, tmp_path, monkeypatch, capsys):
    half, even = ["--bf16", "--dropout", 0], ["--dropout", 0]
    assert distill.main(flags(toy, tmp_path / "float32", *even)) is None
    usual, said = distill.evaluate, []
    with monkeypatch.context() as patch:
        patch.setattr(distill, "evaluate", lambda *x: said.append(
            torch.is_autocast_enabled("cpu")) or usual(*x))
        assert distill.main(flags(toy, tmp_path / "half", *half)) is None
    assert said == [True] * 7                            # two tables of two models, three lines
    assert "device   cpu, bfloat16\n" in capsys.readouterr().out
    for a, b in zip(log(tmp_path / "float32"), log(tmp_path / "half"), strict=True):
        right = a.pop("valid_accuracy", 0), b.pop("valid_accuracy", 0)       # of 64 places
        assert a != b and a == pytest.approx(b, rel=0.01) and abs(right[0] - right[1]) < 0.05
    assert stopped(toy, tmp_path / "run", monkeypatch, signal.SIGTERM, *half) == 143
    assert distill.main(flags(toy, tmp_path / "run", "--resume", *even)) == 2
    assert "'bf16': (True, False)" in capsys.readouterr().err
    assert distill.main(flags(toy, tmp_path / "run", "--resume", *half)) is None
    assert weights(tmp_path / "run") == weights(tmp_path / "half")
    assert {x.dtype for x in read_safetensors(tmp_path / "run" / "training.safetensors")[0].values()
            } == {torch.float32}                         # what is trained stays whole


# ---- The command ---------------------------------------------------------------------------------


def test_the_plan_and_the_report_say_what_happens(toy, tmp_path, capsys):
    assert distill.main(flags(toy, tmp_path / "run")) is None
    plan, report = capsys.readouterr().out.split("\nsteps ")
    for name, made in (("teacher", load(toy / "teacher")), ("student", load(tmp_path / "run"))):
        counts = distill.count_parameters(made)
        for part in (plan, report):
            row = next(line for line in part.splitlines() if line.startswith(name)).split()
            assert row[1:3] == [f"{counts['stored']:,}", f"{counts['applied']:,}"] and len(row) == 5
    assert "device   cpu, float32\n" in plan
    assert "1-2 2-4 " in plan and "1 mlm + 3 attention + 3 hidden + 5 output" in plan
    assert "12 of 64 tokens" in report and " min\n" in report
    last = log(tmp_path / "run")[-1]
    assert row[3:] == [f"{last['valid_accuracy']:.1%}", f"{last['valid_loss']:.3f}"]
    assert report.count("[MASK]") == report.count(" teacher:") == report.count(" student:") == 4
    assert f"python finetune.py --model {tmp_path}/run" in report


def test_without_a_teacher_a_bert_is_pretrained_that_others_can_open(toy, tmp_path, capsys):
    unshared = ["--embedding-size", 24, "--num-hidden-groups", 2]
    assert distill.main(flags(toy, tmp_path / "bert", *alone(toy, *unshared))) is None
    assert set(log(tmp_path / "bert")[0]) == {"step", "loss", "mlm", "lr", "gradient_norm"}
    assert "teacher:" not in capsys.readouterr().out
    assert read_json(tmp_path / "bert" / "config.json")["model_type"] == "bert"
    ours, ids = load(tmp_path / "bert").eval(), torch.randint(5, 96, (2, 9))
    reason = "the oracle is in requirements-dev.txt"
    transformers = pytest.importorskip("transformers", reason=reason)
    theirs = transformers.BertForMaskedLM.from_pretrained(tmp_path / "bert").eval()
    with torch.no_grad():
        assert torch.allclose(ours.predict(ours(ids)[0][-1]), theirs(ids).logits, atol=1e-5)


def test_a_student_from_a_checkpoint_begins_with_its_weights(toy, whole, tmp_path):
    assert distill.main(flags(toy, tmp_path / "again", "--student", whole, "--lr", 0)) is None
    assert weights(tmp_path / "again") == weights(whole)
    assert log(tmp_path / "again")[-1]["valid_loss"] == log(whole)[-1]["valid_loss"]


def test_a_student_from_a_checkpoint_can_be_stopped_and_resumed(toy, whole, tmp_path, monkeypatch):
    more = ["--student", whole]
    assert distill.main(flags(toy, tmp_path / "a", *more)) is None
    assert stopped(toy, tmp_path / "b", monkeypatch, signal.SIGTERM, *more) == 143
    assert distill.main(flags(toy, tmp_path / "b", "--resume", *more)) is None
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(whole)


def test_a_bert_without_a_head_is_given_one(toy, tmp_path):
    assert load(toy / "headless").head is None
    more = ["--teacher", "none", "--student", toy / "headless", "--lr", 0]
    assert distill.main(flags(toy, tmp_path / "headed", *more)) is None
    found, headless = load(tmp_path / "headed"), load(toy / "headless").state_dict()
    assert found.head is not None and "valid_accuracy" in log(tmp_path / "headed")[-1]
    assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in headless.items())


def test_a_teacher_without_a_head_is_distilled_by_its_maps_and_states_alone(toy, tmp_path, capsys):
    assert distill.main(flags(toy, tmp_path / "run", "--teacher", toy / "headless")) is None
    said = capsys.readouterr().out
    assert said.count("no MLM head") == 4 and "loss     3 attention + 3 hidden\n" in said
    assert load(tmp_path / "run").head is None
    first, *_, last = log(tmp_path / "run")
    assert set(last) == {"step", "loss", "attention", "hidden", "lr", "gradient_norm"}
    assert last["hidden"] < first["hidden"]


def test_the_papers_recipe_is_the_authors_in_every_choice():
    """shared/REFERENCE.md, section 1, read in their code and their checkpoints."""
    args = vars(distill.arguments(["--teacher", "bert-base-uncased", "--recipe", "paper"]))
    assert args.items() >= {
        "steps": 100_000, "batch_size": 192, "length": 256, "lr": 5e-4, "warmup": 5000,
        "weight_decay": 1e-4, "dropout": 0.1, "temperature": 1.0, "init": "random",
        "tie_decoder": False, "num_hidden_layers": 6, "embedding_size": 128,
        "mlm_weight": 1, "attention_weight": 3, "hidden_weight": 3, "output_weight": 5,
        "embedding_weight": 0}.items()
    teacher = model(Config(V, 160, 160, 12, 12, 4, F))
    student = distill.make_student(distill.argparse.Namespace(**args), teacher, V)
    assert vars(student.config).items() >= {
        "num_hidden_layers": 6, "num_hidden_groups": 1, "adapter_size": 10, "embedding_size": 128,
        "hidden_size": 160, "num_attention_heads": 4, "intermediate_size": F, "tie_decoder": False,
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}.items()
    assert distill.arguments(["--recipe", "paper", "--steps", "7", "--tie-decoder"]).steps == 7


def test_a_fresh_student_is_shaped_by_its_teacher_unless_flags_say_otherwise():
    for L, R in ((12, 6), (4, 4), (24, 24)):
        args = distill.arguments([])
        config = distill.make_student(args, model(Config(V, 32, 32, L, L, 4, F)), V).config
        assert (config.num_hidden_layers, config.embedding_size, config.adapter_size) == (R, 16, 2)
    flags = "--num-hidden-groups 3 --num-hidden-layers 3 --embedding-size 32"
    args = distill.arguments(flags.split())
    config = distill.make_student(args, model(Config(V, 32, 32, 12, 12, 4, F)), V).config
    assert config.is_bert and config.num_hidden_layers == 3


ERRORS = {
    "recursions that do not divide": (["--num-hidden-layers", "3"], "3 recursions"),
    "more tokens than positions": (["--length", "33"], "--length"),
    "another vocabulary": (["--tokenizer", "{toy}/large"], "large"),
    "widths that differ": (["--hidden-size", "30", "--init", "random"], "hidden_size"),
    "heads that differ": (["--num-attention-heads", "4"], "num_attention_heads"),
    "a start from other widths": (["--intermediate-size", "41"], "intermediate_size"),
    "a start wider than the teacher": (["--embedding-size", "25"], "embedding_size"),
    "--student with a shape": (["--student", "{toy}/teacher", "--adapter-size", "2"], "--student"),
    "no tokenizer": (["--teacher", "none"], "--tokenizer"),
    "a start from no teacher": (["--teacher", "none", "--init", "teacher"], "--init"),
    "all weights zero": ([f"--{term}-weight=0" for term in distill.WEIGHTS], "loss"),
    "a negative weight": (["--hidden-weight", "-1"], "--hidden-weight"),
    "a negative rate": (["--lr", "-0.1"], "--lr"),
    "not a number": (["--lr", "nan"], "--lr"),
    "no rate": (["--lr", "much"], "--lr"),
    "dropout of all": (["--dropout", "1"], "dropout"),
    "temperature zero": (["--temperature", "0"], "--temperature"),
    "no steps": (["--steps", "0"], "--steps"),
    "no batch": (["--batch-size", "0"], "--batch-size"),
    "too short": (["--length", "2"], "2"),
    "heads that do not divide": (["--num-attention-heads", "5"], "num_attention_heads"),
    "no such flag": (["--learning-rate", "1"], "--learning-rate"),
    "an abbreviated flag": (["--step", "3"], "--step"),
    "both again flags": (["--resume", "--overwrite"], "--overwrite"),
    "no such teacher": (["--teacher", "{toy}/none/such"], "none/such"),
    "no such corpus": (["--corpus", "{toy}/none.txt"], "none.txt"),
    "too little text": (["--corpus", "{toy}/little.txt"], "tokens"),
    "a part to hold out too short": (["--corpus", "{toy}/short.txt"], "tokens"),
    "another tokenizer's tokens": (["--corpus", "{toy}/other.bin"], "other.bin"),
    "an --out that is a file": (["--out", "{toy}/corpus.txt"], "corpus.txt"),
    "an --out in use": (["--out", "{toy}/teacher"], "--out"),
} | ({} if torch.cuda.is_available() else {"no GPU": (["--device", "cuda"], "--device cuda")})


@pytest.fixture(scope="session")
def mistakes(toy):
    """What the errors need: a larger vocabulary, too little text, tokens of another tokenizer."""
    os.makedirs(toy / "large")
    words = (toy / "teacher" / "vocab.txt").read_text().split()
    (toy / "large" / "vocab.txt").write_text("\n".join(words + [f"x{i}" for i in range(9)]) + "\n")
    (toy / "little.txt").write_text("w1 w2 w3 .\n")
    (toy / "short.txt").write_text("w1 w2 w3 . " * 60 + "\n")            # 240 tokens: 4 held out
    tokenise([f"{toy}/corpus.txt"], distill.Tokenizer(f"{toy}/large"), f"{toy}/other.bin")
    return toy


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_of_the_user_is_one_line_and_nothing_is_written(mistakes, tmp_path, name, capsys):
    more, named = ERRORS[name]
    more = [flag.format(toy=mistakes) for flag in more]
    before = {path: path.read_bytes() for path in mistakes.glob("*/*") if path.is_file()}
    capsys.readouterr()
    assert distill.main(flags(mistakes, tmp_path / "out", *more)) == 2
    *others, error = capsys.readouterr().err.splitlines()
    assert error.startswith("distill.py: error: ") and named in error, error
    if name not in ("too little text", "a part to hold out too short"):  # data.py says so first
        assert not others
    assert not (tmp_path / "out").exists()
    assert all(path.read_bytes() == data for path, data in before.items())


def test_help_names_each_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as exit:
        distill.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert exit.value.code == 0
    assert f"--steps STEPS (default: {distill.RECIPES['quick']['steps']})" in said
    assert "--attention-weight ATTENTION_WEIGHT (default: 3.0)" in said
