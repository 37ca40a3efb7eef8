"""checkpoint.py: its files against the safetensors package and transformers, files that are
damaged or hostile, writing that fails, the state of a training run, models by name."""
import copy
import errno
import fnmatch
import json
import os
import random
import shutil
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import torch

import checkpoint
from checkpoint import (
    SMALL_FILES, expecting, fetch, load, lock,
    name_in_file, parse_json_object, read_config, read_json, read_pickle, read_safetensors,
    read_text, read_weights, remove_abandoned, claim_folder, replace_file, restore_training_state,
    run_folder, save, save_training_state, with_usual_names, write_json, write_safetensors)
from command import first_few
from conftest import (
    A, C, E, KINDS, MAX_POSITIONS, R, ROOT, V, assert_close, assert_equal_tensors,
    assert_same_as_authors, assert_same_as_bert, authors_checkpoint, authors_weights, files_below,
    make_batch, random_bert, random_model)
from minialbert import merge_corrections


@pytest.fixture
def safetensors():
    """Return the official package, which is the oracle."""
    pytest.importorskip("safetensors", reason="the oracle is in requirements-dev.txt")
    import safetensors.torch
    return safetensors


# ---- Safetensors: what the official package reads and writes ----------------------------

def tensors_of_every_dtype():
    """Make a matrix, an empty matrix and a single number of each type: {name: tensor}."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for code, dtype in checkpoint.DTYPES.items():
        limit = 100
        if code == "BOOL":
            limit = 2
        for shape in ((2, 3), (0, 3), ()):
            numbers = torch.randint(0, limit, shape, generator=generator)
            tensors[f"{code} {shape}"] = numbers.to(dtype)
    return tensors


def test_a_file_of_the_official_package_is_read_bit_by_bit(safetensors, tmp_path):
    metadata = {"who": "they", "é": "ü"}
    safetensors.torch.save_file(tensors_of_every_dtype(), tmp_path / "x", metadata=metadata)
    found, found_metadata = read_safetensors(tmp_path / "x")
    assert_equal_tensors(found, tensors_of_every_dtype())
    assert found_metadata == metadata


def test_the_official_package_reads_our_file_bit_by_bit(safetensors, tmp_path):
    metadata = {"who": "we", "é": "ü"}
    write_safetensors(tensors_of_every_dtype(), tmp_path / "x", metadata)
    found = safetensors.torch.load_file(tmp_path / "x")
    assert_equal_tensors(found, tensors_of_every_dtype())
    with safetensors.safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata() == metadata


def test_a_transposed_view_is_written_as_it_looks(tmp_path):
    """Its numbers stand in the memory in another order."""
    table = torch.arange(6.0).view(2, 3)
    write_safetensors({"x": table.T}, tmp_path / "x")
    tensors, _ = read_safetensors(tmp_path / "x")
    assert torch.equal(tensors["x"], table.T)


def test_every_tensor_is_written_at_a_multiple_of_its_element(tmp_path):
    """Only then can a file that is mapped into memory be used without a copy."""
    tensors = tensors_of_every_dtype()
    write_safetensors(tensors, tmp_path / "x")
    content = (tmp_path / "x").read_bytes()
    header_size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8:8 + header_size])
    assert header_size % 8 == 0
    for name, tensor in tensors.items():
        begin, _ = header[name]["data_offsets"]
        assert begin % tensor.element_size() == 0, name


def test_a_tensor_is_mapped_not_copied(tmp_path):
    write_safetensors({"x": torch.zeros(1000)}, tmp_path / "x")
    tensors, _ = read_safetensors(tmp_path / "x")
    with open(tmp_path / "x", "r+b") as file:            # a mapped tensor shows what is written now
        file.seek(-4, os.SEEK_END)
        file.write(np.float32(5).tobytes())
    assert tensors["x"][-1] == 5


def test_writing_to_a_tensor_leaves_its_file_alone(tmp_path):
    write_safetensors({"x": torch.zeros(1000)}, tmp_path / "x")
    before = (tmp_path / "x").read_bytes()
    tensors, _ = read_safetensors(tmp_path / "x")
    tensors["x"].fill_(1)
    assert (tmp_path / "x").read_bytes() == before


# ---- Safetensors: damaged files ---------------------------------------------------------

def file_bytes(header, data=b"", header_size=None):
    """Make the content of a file; the header is a dict, text or bytes.

    header_size: the size that the file claims for its header; None: the true one
    """
    if isinstance(header, dict):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    if header_size is None:
        header_size = len(header)
    return header_size.to_bytes(8, "little") + header + data


def entry(begin=0, end=8, shape=(2,), dtype="F32"):
    """Make a tensor's entry in a header; by default a good one, of two numbers."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def entry_with_offsets(offsets):
    """Make an entry that is good but for its offsets."""
    return {"dtype": "F32", "shape": [2], "data_offsets": offsets}


def one_tensor(entry_of_x, num_bytes=8):
    """Make the content of a file with one tensor, x, and so many bytes of data, all 0."""
    return file_bytes({"x": entry_of_x}, bytes(num_bytes))


@pytest.mark.parametrize("shift", range(8))
def test_the_data_may_begin_anywhere(tmp_path, shift):
    """Files of others may not be aligned. Then the tensor is a copy, which is."""
    header = json.dumps({"x": entry()}) + " " * shift
    data = np.float32([1, 2]).tobytes()
    (tmp_path / "x").write_bytes(file_bytes(header, data))
    tensors, _ = read_safetensors(tmp_path / "x")
    assert tensors["x"].tolist() == [1, 2]
    assert tensors["x"].data_ptr() % 4 == 0


def test_the_header_may_name_the_tensors_in_any_order(tmp_path):
    header = {"x": entry(4, 12), "y": entry(0, 4, (1,))}
    (tmp_path / "x").write_bytes(file_bytes(header, np.float32([1, 2, 3]).tobytes()))
    tensors, _ = read_safetensors(tmp_path / "x")
    assert tensors["x"].tolist() == [2, 3]
    assert tensors["y"].tolist() == [1]


GOOD = json.dumps(entry())
DEEP_LIST = json.loads("[" * 500 + "]" * 500)
# {what is wrong: (the content of the file, a pattern in the message)}
BROKEN = {
    "an empty file": (b"", "shorter than 8 bytes"),
    "seven bytes": (b"\0" * 7, "shorter than 8 bytes"),
    "a header of no bytes": (b"\0" * 8, "header"),
    "a header past the end": (file_bytes({"x": entry()}, b"\0" * 8, 500), "500 bytes"),
    "a header of nine bytes": ((9).to_bytes(8, "little"), "9 bytes, but only 0 follow"),
    "four bytes too many": (one_tensor(entry(), 12), "at byte 8 of the .* is at byte 12"),
    "a header of 2^63 bytes": (file_bytes({"x": entry()}, b"\0" * 8, 2**63), "header"),
    "a header of 2^64 - 1 bytes": (file_bytes({"x": entry()}, b"\0" * 8, 2**64 - 1), "header"),
    "not JSON": (file_bytes("{'x': 1}"), "JSON"),
    "not text": (file_bytes(b'{"\xff": 1}'), "JSON"),
    "a list": (file_bytes("[1, 2]"), "JSON"),
    "a deep list": (file_bytes("[" * 100_000), "JSON"),
    "a deep object": (file_bytes('{"x":' * 100_000), "JSON"),
    "a huge number": (file_bytes('{"x": 1' + "0" * 5000 + "}"), "JSON"),
    "half a character": (file_bytes('{"\\ud800": ' + GOOD + "}", b"\0" * 8), "half a character"),
    "metadata that are a list":
        (file_bytes({"__metadata__": []}), "'__metadata__' is not a JSON object"),
    "metadata that are numbers": (file_bytes({"__metadata__": {"a": 1}}), "__metadata__"),
    "an entry that is a list": (file_bytes({"x": []}), "'x'"),
    "an entry that is null": (file_bytes({"x": None}), "'x'"),
    "an entry without a shape":
        (file_bytes({"x": {"dtype": "F32", "data_offsets": [0, 0]}}), "'x'.*shape"),
    "a deep entry": (one_tensor(entry(shape=DEEP_LIST)), "'x'"),
    "an unknown dtype": (one_tensor(entry(dtype="F33")), "'x'.*F33"),
    "a dtype that is a list": (one_tensor(entry(dtype=["F32"])), "'x'"),
    "a dtype that is null": (one_tensor(entry(dtype=None)), "'x'"),
    "a shape that is text": (one_tensor(entry(0, 4, ""), 4), "'x'"),
    "a shape that is an object": (one_tensor(entry(0, 4, {}), 4), "'x'"),
    "a shape that is null": (one_tensor(entry(shape=None)), "'x'"),
    "a shape of -1": (one_tensor(entry(shape=[-1])), "'x'"),
    "a shape of -1 and -2": (one_tensor(entry(shape=[-1, -2])), "'x'.*-1"),
    "a shape of true": (one_tensor(entry(0, 4, [True]), 4), "'x'"),
    "a shape of 2.0": (one_tensor(entry(shape=[2.0])), "'x'"),
    "a shape of 2^80": (one_tensor(entry(shape=[2**80])), "'x': .* has 8 bytes"),
    "a shape of a million dimensions":
        (one_tensor(entry(shape=[2**61] * 10**6)), "'x': .* has 1000000 dim.*64"),
    "a shape that overflows": (one_tensor(entry(0, 0, [2**61, 2**61, 0]), 0), "overflow"),
    "a shape that wraps around to 2": (one_tensor(entry(shape=[2**61, 8, 2**33])), "'x'"),
    "too few bytes": (one_tensor(entry(shape=[3])), "'x'"),
    "half a number": (one_tensor(entry(0, 7, [2]), 7), "'x'"),
    "offsets that are null": (one_tensor(entry_with_offsets(None)), "'x'"),
    "offsets that are text": (one_tensor(entry_with_offsets("08")), "'x'.*'0' in its"),
    "three offsets": (one_tensor(entry_with_offsets([0, 8, 8])), "'x'"),
    "offsets of true": (one_tensor(entry(False, True, [1], "U8"), 1), "'x'"),
    "negative offsets": (one_tensor(entry(-8, 0)), "'x'"),
    "offsets the wrong way round": (one_tensor(entry(8, 0)), "'x'"),
    "offsets past the end": (one_tensor(entry(8, 16)), "'x'"),
    "an end past the end": (one_tensor(entry(0, 80)), "'x'"),
    "a last tensor past the end": (one_tensor(entry(0, 80, [20])), "end of the data"),
    "offsets of 2^70": (one_tensor(entry(2**70, 2**70, [0]), 0), "'x'"),
    "a hole": (file_bytes({"x": entry(), "y": entry(12, 20)}, b"\0" * 20), "'y'.*12"),
    "a hole at the start": (one_tensor(entry(4, 12), 12), "'x'.*4"),
    "overlap": (file_bytes({"x": entry(), "y": entry(4, 12)}, b"\0" * 12), "'y'.*4"),
    "twice the same bytes": (file_bytes({"x": entry(), "y": entry()}, b"\0" * 8), "'y'"),
    "bytes left over": (one_tensor(entry(), 9), "end of the data"),
    "a name with a line break": (file_bytes({"x\ny": entry(shape=[3])}, b"\0" * 8), "x.*y"),
    "a long name": (file_bytes({"x" * 9000: entry(shape=[3])}, b"\0" * 8), "x{100}"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_file_is_one_line_that_names_it(tmp_path, broken):
    content, pattern = BROKEN[broken]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=pattern) as error:
        read_safetensors(path)
    message = str(error.value)
    assert message.startswith(f"{path}: not a safetensors file: ")
    assert len(message.splitlines()) == 1
    assert len(message) < 1000


@pytest.mark.parametrize("read", [read_safetensors, read_pickle, read_text, read_json])
def test_a_pointer_of_git_lfs_is_recognised(tmp_path, read):
    (tmp_path / "x").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
    with pytest.raises(ValueError, match="x: .*a pointer of Git LFS to the file: git lfs pull"):
        read(tmp_path / "x")


# ---- Checkpoints of others --------------------------------------------------------------

def save_pickled(bert, folder, rename=None, extra=None):
    """Write a BERT of transformers as an old version did, in a pytorch_model.bin.

    rename: a function from the name of a tensor to the name in the file
    extra: more tensors {name: tensor}
    """
    tensors = {}
    for name, tensor in bert.state_dict().items():
        if rename is not None:
            name = rename(name)
        tensors[name] = tensor
    if extra is not None:
        tensors.update(extra)
    bert.config.save_pretrained(folder)
    torch.save(tensors, folder / "pytorch_model.bin")


def old_spelling(name):
    """Return the name that early checkpoints of BERT have for a tensor."""
    name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
    return name.replace("LayerNorm.bias", "LayerNorm.beta")


def save_bert(bert, folder, kind):
    """Write a BERT of transformers as one of the kinds of files in BERT_FILES."""
    if kind == "safetensors":
        bert.save_pretrained(folder)
    elif kind == "shards":
        bert.save_pretrained(folder, max_shard_size="20KB")
        assert len(list(folder.glob("*.safetensors"))) > 2
    elif kind == "pickled, decoder twice":
        save_pickled(bert, folder)
    elif kind == "gamma and beta":
        save_pickled(bert, folder, old_spelling)
    elif kind == "position_ids":
        position_ids = torch.arange(MAX_POSITIONS)[None]
        save_pickled(bert, folder, extra={"bert.embeddings.position_ids": position_ids})
    elif kind == "F16":
        bert.half().save_pretrained(folder)
    elif kind == "BF16":
        bert.bfloat16().save_pretrained(folder)


BERT_FILES = ["safetensors", "shards", "pickled, decoder twice", "gamma and beta", "position_ids",
              "F16", "BF16"]


@pytest.mark.parametrize("kind", BERT_FILES)
def test_a_bert_is_read_from_every_kind_of_file(transformers, tmp_path, kind):
    bert = random_bert(transformers)
    save_bert(bert, tmp_path, kind)
    assert_same_as_bert(load(tmp_path), bert)


def test_the_pooler_and_the_next_sentence_head_are_left_out(transformers, tmp_path):
    bert = random_bert(transformers, "BertForPreTraining")
    bert.save_pretrained(tmp_path)
    assert_same_as_bert(load(tmp_path), bert)


def test_a_bert_without_prefix_and_head_has_no_head(transformers, tmp_path):
    bert = random_bert(transformers, "BertModel")
    bert.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert model.head is None
    assert_same_as_bert(model, bert)


def test_an_untied_decoder_is_read_with_its_own_bias(transformers, tmp_path):
    bert = random_bert(transformers, tie_word_embeddings=False)
    other_bias = {"cls.predictions.bias": torch.full([V], 9.0)}      # an old file may have two
    save_pickled(bert, tmp_path, extra=other_bias)
    model = load(tmp_path)
    assert not model.config.tie_decoder
    assert_same_as_bert(model, bert)


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertForPreTraining"])
def test_a_bert_whose_names_all_have_one_more_prefix_is_read_with_its_head(
        transformers, tmp_path, kind):
    bert = random_bert(transformers, kind)
    bert.save_pretrained(tmp_path)
    wrapped = {}
    for name, tensor in bert.state_dict().items():
        wrapped[f"bert.{name}"] = tensor.clone()         # the file may not hold one tensor twice
    write_safetensors(wrapped, tmp_path / "model.safetensors")
    assert_same_as_bert(load(str(tmp_path)), bert)


def test_a_decoder_equal_to_the_word_table_is_tied(transformers, tmp_path):
    save_pickled(random_bert(transformers), tmp_path)
    model = load(tmp_path)
    assert model.config.tie_decoder
    assert model.head.decoder is None


def test_a_matrix_that_is_stored_column_by_column_is_loaded_row_by_row(saved):
    """A pytorch_model.bin that was converted from TensorFlow may have such matrices."""
    expected = load(saved).state_dict()
    tensors, _ = read_safetensors(saved / "model.safetensors")
    stored = {}
    for name, tensor in tensors.items():
        stored[name] = tensor.clone()
        if tensor.ndim == 2:
            stored[name] = tensor.T.contiguous().T
    to_pickle(saved, stored)
    for name, tensor in load(saved).state_dict().items():
        assert tensor.is_contiguous(), name
        assert torch.equal(tensor, expected[name]), name


def test_a_student_is_saved_under_the_authors_names(tmp_path):
    """So the oracle of the authors' forward pass computes the same from the file."""
    model = random_model(adapter_size=A, tie_decoder=False)
    save(model, tmp_path)
    tensors, _ = read_safetensors(tmp_path / "model.safetensors")
    weights = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    for leaf in ("weight", "bias"):                      # only the projection has ALBERT's name
        name = f"encoder.embedding_hidden_mapping_in.{leaf}"
        weights[f"projector.{leaf}"] = weights.pop(name)
    assert_same_as_authors(model, weights)


def test_a_checkpoint_from_before_there_were_corrections_has_none(tmp_path):
    model = random_model(adapter_size=A)
    save(model, tmp_path)
    config = read_json(tmp_path / "config.json")
    del config["correction_rank"]
    write_json(tmp_path / "config.json", config)
    assert load(tmp_path).config == model.config


def test_names_are_translated():
    """The number of a layer is put into a name where the layout has the sign #."""
    bert = "encoder.layer.12.attention.output.LayerNorm.bias"
    albert = "encoder.albert_layer_groups.12.albert_layers.0.attention.LayerNorm.bias"
    name = "layers.12.attention_norm.bias"
    assert name_in_file(checkpoint.BERT_LAYOUT, name) == bert
    assert name_in_file(checkpoint.ALBERT_LAYOUT, name) == albert
    assert name_in_file(checkpoint.BERT_LAYOUT, "head.bias") == "cls.predictions.bias"
    adapter = name_in_file(checkpoint.ALBERT_LAYOUT, "feed_forward_adapters.3.up.weight")
    assert adapter == "mlp_adapters.3.block.2.weight"
    # A module of somebody's own may have several numbers.
    assert name_in_file(checkpoint.BERT_LAYOUT, "scales.1.2.weight") == "scales.1.2.weight"


# ---- Saving and loading -----------------------------------------------------------------

@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_loaded(tmp_path, kind, head):
    model = random_model(head, **KINDS[kind])
    save(model, tmp_path)
    found = load(tmp_path)
    assert_equal_tensors(found.state_dict(), model.state_dict())
    assert (found.head is None) == (not head)
    if head:
        assert found.config == model.config


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_rounded_weights_is_loaded_as_float32(tmp_path, kind, dtype):
    model = random_model(**KINDS[kind])
    save(model, tmp_path)
    saved, _ = read_safetensors(tmp_path / "model.safetensors")
    rounded = {}
    for name, tensor in saved.items():
        assert tensor.dtype == torch.float32
        rounded[name] = tensor.to(dtype)
    write_safetensors(rounded, tmp_path / "model.safetensors")
    expected = {}
    for name, tensor in model.state_dict().items():
        expected[name] = tensor.to(dtype).float()
    assert_equal_tensors(load(tmp_path).state_dict(), expected)


def test_the_file_says_that_its_tensors_are_of_pytorch(tmp_path):
    """Some versions of transformers refuse a file that does not say so."""
    save(random_model(), tmp_path)
    _, metadata = read_safetensors(tmp_path / "model.safetensors")
    assert metadata == {"format": "pt"}


def test_a_loaded_model_does_not_depend_on_its_file(tmp_path):
    """A file that is overwritten later, by zeros here, must not change it."""
    model = random_model()
    save(model, tmp_path)
    found = load(tmp_path)
    path = tmp_path / "model.safetensors"
    with open(path, "r+b") as file:
        file.write(bytes(os.path.getsize(path)))
    assert_equal_tensors(found.state_dict(), model.state_dict())


@pytest.mark.parametrize("kind", ["bert", "adapters"])
def test_a_loaded_model_is_in_eval_mode(tmp_path, kind):
    save(random_model(**KINDS[kind]).train(), tmp_path)
    model = load(tmp_path)
    assert not any(module.training for module in model.modules())
    first, _ = model(*make_batch())
    second, _ = model(*make_batch())
    assert torch.equal(first[-1], second[-1])            # no dropout


def test_loading_spends_no_random_numbers(tmp_path):
    """So a run draws the same numbers whether or not it loads a model."""
    save(random_model(), tmp_path)
    torch.manual_seed(5)
    load(tmp_path)
    after_loading = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after_loading)


def test_loading_and_saving_do_not_import_torchs_compiler(tmp_path):
    """To import it takes almost as long as to import torch."""
    save(random_model(adapter_size=A, correction_rank=4), tmp_path)
    program = (f"import sys; from checkpoint import load, save; save(load({str(tmp_path)!r}), "
               f"{str(tmp_path / 'copy')!r}); print('torch._dynamo' in sys.modules)")
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True,
                            text=True, timeout=60)
    assert result.stdout == "False\n", result.stderr


@pytest.mark.parametrize("kind", ["bert", "bert, untied"])
def test_a_saved_bert_opens_in_transformers_with_nothing_missing(transformers, tmp_path, kind):
    model = random_model(**KINDS[kind])
    save(model, tmp_path)
    bert, report = transformers.BertForMaskedLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager")
    for kind_of_problem, names in report.items():
        assert not names, kind_of_problem
    assert_same_as_bert(model, bert.eval())


@pytest.mark.parametrize("kind", KINDS)
def test_the_config_says_what_the_model_is(tmp_path, kind):
    model = random_model(**KINDS[kind])
    save(model, tmp_path / "with")
    model.head = None
    save(model, tmp_path / "without")
    config = read_json(tmp_path / "with" / "config.json")
    headless = read_json(tmp_path / "without" / "config.json")
    family = "Albert"
    if kind.startswith("bert"):
        family = "Bert"
    elif kind.startswith(("adapters", "corrections")):
        family = "MiniALBERT"
    assert config["model_type"] == family.lower()
    with_head = family + "ForMaskedLM"
    if family == "Albert":                               # its head in transformers is not ours
        with_head = "AlbertModel"
    assert config["architectures"] == [with_head]
    assert headless["architectures"] == [family + "Model"]
    assert config["tie_word_embeddings"] == (not kind.endswith("untied"))
    assert read_config(tmp_path / "with" / "config.json") == model.config


@torch.no_grad()
def assert_same_as_albert(model, albert):
    """Assert that the last hidden state is that of an AlbertModel of transformers."""
    ids, mask, segments = make_batch()
    theirs = albert.eval()(ids, attention_mask=mask.long(), token_type_ids=segments)
    hidden, _ = model(ids, mask, segments)
    assert_close(hidden[-1], theirs.last_hidden_state)


@pytest.mark.parametrize("kind", ["recursive", "recursive, E = C", "unshared, factorised",
                                  "partly shared", "corrections"])
def test_a_saved_student_opens_as_an_albert_with_nothing_missing(transformers, tmp_path, kind):
    model = random_model(**KINDS[kind])
    if kind == "corrections":
        model = merge_corrections(model)
    save(model, tmp_path)
    albert, report = transformers.AlbertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    assert_same_as_albert(model, albert)


# ---- Checkpoints that are refused -------------------------------------------------------

def refusal(folder, pattern=None):
    """Return the message of load(), which must be one line that names the folder."""
    with pytest.raises(ValueError, match=pattern) as error:
        load(folder)
    message = str(error.value)
    assert str(folder) in message
    assert len(message.splitlines()) == 1
    assert len(message) < 2000
    return message


REMOVED = object()                                       # this entry is to be left out


def change_config(folder, **changes):
    """Change fields in the folder's config.json; REMOVED removes one."""
    config = read_json(folder / "config.json")
    for name, value in changes.items():
        if value is REMOVED:
            del config[name]
        else:
            config[name] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    """Make a folder with a small BERT, which nobody changes."""
    folder = tmp_path_factory.mktemp("saved")
    save(random_model(**KINDS["bert"]), folder)
    return folder


@pytest.fixture
def saved(saved_once, tmp_path):
    """Make a folder with a small BERT."""
    shutil.copytree(saved_once, tmp_path, dirs_exist_ok=True)
    return tmp_path


def change_tensors(folder, changes):
    """Replace tensors in the folder's file; None removes one."""
    mapped, _ = read_safetensors(folder / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in mapped.items()}
    for name, tensor in changes.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    write_safetensors(tensors, folder / "model.safetensors")


def test_every_missing_and_every_unknown_tensor_is_named(saved):
    change_tensors(saved, {"bert.encoder.layer.2.output.dense.weight": None,
                           "cls.predictions.bias": None,
                           "other": torch.ones(3),
                           "bert.encoder.layer.9.surprise": torch.ones(2)})
    message = refusal(saved)
    assert "'encoder.layer.2.output.dense.weight' is missing" in message
    assert "'cls.predictions.bias' is missing" in message
    assert "'other' of shape [3] is not known" in message
    assert "'encoder.layer.9.surprise' of shape [2] is not known" in message
    assert "more" not in message
    # What is not known comes first, because it tells more if all names are strange.
    assert message.index("is not known") < message.index("is missing")


def test_a_model_of_no_recursions_is_refused(saved):
    with pytest.raises(ValueError, match="so 0 of them cannot be kept"):
        load(saved, recursions=0)


def test_a_missing_word_table_is_named_though_there_is_a_decoder(saved):
    change_tensors(saved, {"bert.embeddings.word_embeddings.weight": None,
                           "cls.predictions.decoder.weight": torch.ones(V, C)})
    refusal(saved, "'embeddings.word_embeddings.weight' is missing")


def test_a_missing_decoder_of_an_untied_head_is_named(tmp_path):
    save(random_model(tie_decoder=False), tmp_path)
    change_tensors(tmp_path, {"vocab_projector.weight": None})
    refusal(tmp_path, "'vocab_projector.weight' is missing")
    # Without a head there is no decoder that could be missing or untied.
    save(random_model(head=False, tie_decoder=False), tmp_path)
    model = load(tmp_path)
    assert model.head is None
    assert model.config.tie_decoder


def test_the_prefix_of_data_parallel_is_left_out(saved):
    """torch's DataParallel and DistributedDataParallel put it before all names."""
    expected = load(saved).state_dict()
    tensors, metadata = read_safetensors(saved / "model.safetensors")
    renamed = {}
    for name, tensor in tensors.items():
        renamed[f"module.{name}"] = tensor.clone()       # the file that is mapped is replaced
    write_safetensors(renamed, saved / "model.safetensors", metadata)
    assert_equal_tensors(load(saved).state_dict(), expected)


def test_of_many_wrong_tensors_six_are_named_and_all_are_counted(saved):
    wrong = {f"other{i:04}": torch.ones(3) for i in range(2006)}
    change_tensors(saved, wrong)
    message = refusal(saved, "; and 2,000 more$")
    for i in range(6):
        assert f"'other000{i}' of shape [3] is not known" in message
    assert "other0006" not in message


def test_the_first_few_of_many_texts():
    assert first_few([]) == ""
    assert first_few(["a", "b"], limit=2) == "a; b"
    assert first_few(["a", "b", "c"], limit=2) == "a; b; and 1 more"
    assert len(first_few(["x" * 10_000])) <= 200


@pytest.mark.parametrize("name", ["{}", "layers.{0}.norm.weight", "%s", "a\nb", "", "layer.#.x"])
def test_a_strange_name_is_just_unknown(saved, name):
    """These would be patterns if a message were formatted or a layout searched with them."""
    change_tensors(saved, {name: torch.ones(2)})
    refusal(saved, "not known")


def test_a_tensor_of_another_shape_is_named(saved):
    change_tensors(saved, {"bert.embeddings.LayerNorm.weight": torch.ones(C + 1)})
    refusal(saved, r"'embeddings.LayerNorm.weight' is \[25\], not \[24\]")


def test_weights_of_whole_numbers_are_refused(saved):
    whole_numbers = torch.ones(C, dtype=torch.int8)
    change_tensors(saved, {"bert.embeddings.LayerNorm.weight": whole_numbers})
    refusal(saved, "'embeddings.LayerNorm.weight' is of type torch.int8")


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "BertForTokenClassification",
                                  "BertForQuestionAnswering"])
def test_a_bert_with_the_head_of_a_task_is_read_as_an_encoder(transformers, tmp_path, kind):
    bert = random_bert(transformers, kind)
    bert.save_pretrained(tmp_path)
    assert_same_as_bert(load(tmp_path), bert.bert)


def test_of_the_two_biases_of_a_head_that_of_the_decoder_is_used_in_any_order():
    biases = {"cls.predictions.decoder.bias": torch.ones(2), "cls.predictions.bias": torch.zeros(2)}
    for names in (sorted(biases), sorted(biases, reverse=True)):
        tensors = {name: biases[name] for name in names}
        found = with_usual_names(tensors)
        assert list(found) == ["cls.predictions.bias"]
        assert torch.equal(found["cls.predictions.bias"], torch.ones(2))


# The last one is finite in float64, in which it is stored, but not in float32.
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e300])
def test_weights_that_are_not_finite_are_named(saved, value):
    bias = torch.zeros(C, dtype=torch.float64)
    bias[-1] = value
    change_tensors(saved, {"bert.embeddings.LayerNorm.bias": bias})
    refusal(saved, "there are values that are not finite in embeddings.norm.bias$")


def test_of_many_weights_that_are_not_finite_the_first_few_are_named(saved):
    tensors, _ = read_safetensors(saved / "model.safetensors")
    not_finite = {name: tensor * float("nan") for name, tensor in tensors.items()}
    change_tensors(saved, not_finite)
    refusal(saved, f"and {len(tensors) - 6} more$")


def test_a_projection_that_is_no_identity_is_not_left_out(tmp_path):
    """Our model has no projection if E = C, and a file from an ALBERT may hold an identity."""
    name = "encoder.embedding_hidden_mapping_in"
    save(random_model(embedding_size=C), tmp_path)
    load(tmp_path)
    for tensors in ({f"{name}.weight": 2 * torch.eye(C)}, {f"{name}.bias": torch.ones(C)}):
        save(random_model(embedding_size=C), tmp_path)
        change_tensors(tmp_path, tensors)
        refusal(tmp_path, f"'{name}.weight' of shape .* is not known")


@pytest.mark.parametrize("name", [
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "type_vocab_size"])
def test_a_field_that_the_config_must_have_is_named_if_it_is_missing(saved, name):
    change_config(saved, **{name: REMOVED})
    refusal(saved, f"has no '{name}'")


@pytest.mark.parametrize("name, value, pattern", [
    ("hidden_act", "gelu_new", "gelu_new"),
    ("hidden_act", [1], "hidden_act"),
    ("position_embedding_type", "relative_key", "position_embedding_type is 'relative_key'"),
    ("hidden_size", "24", "hidden_size.*'24'"),
    ("hidden_size", True, "hidden_size"),
    ("hidden_size", 24.0, "hidden_size"),
    ("hidden_size", None, "hidden_size"),
    ("hidden_size", 0, "hidden_size"),
    ("hidden_size", -24, "hidden_size"),
    ("hidden_size", 25, "num_attention_heads"),
    ("hidden_size", 2**40, "hidden_size"),
    ("num_hidden_layers", 2000, "num_hidden_layers"),
    ("num_hidden_layers", 3, "groups"),
    ("num_hidden_layers", [4], "num_hidden_layers"),
    ("num_attention_heads", 0, "heads"),
    ("hidden_dropout_prob", "0.1", "hidden_dropout"),
    ("hidden_dropout_prob", -1, "hidden_dropout"),
    ("hidden_dropout_prob", True, "hidden_dropout"),
    ("layer_norm_eps", float("nan"), "eps"),
    ("layer_norm_eps", float("inf"), "eps"),
    ("tie_decoder", "yes", "tie_decoder"),
    ("vocab_size", V + 1, "word_embeddings"),
    ("adapter_size", -1, "adapter_size"),
    ("model_type", "roberta", "model_type is 'roberta', but only bert, albert and minialbert"),
    ("model_type", ["bert"], "model_type"),
    ("model_type", "", "model_type is ''"),
    ("is_decoder", True, "is_decoder is True, but only False is known"),
    ("inner_group_num", 2, "inner_group_num is 2, but only 1 is known"),
])
def test_a_wrong_field_of_the_config_is_named(saved, name, value, pattern):
    change_config(saved, **{name: value})
    refusal(saved, pattern)


def test_an_albert_that_names_no_activation_has_that_of_transformers(saved):
    change_config(saved, model_type="albert", hidden_act=REMOVED)
    refusal(saved, "config.json: .*hidden_act is 'gelu_new'")


@pytest.mark.parametrize("factor, shown", [
    ("16", "'16'"), (0, "0"), (True, "True"), (None, "None"), (2.5, "2.5"), (REMOVED, "None")])
def test_a_wrong_reduction_factor_is_refused(tmp_path, factor, shown):
    authors_checkpoint(authors_weights(E, True), tmp_path)
    change_config(tmp_path, reduction_factor=factor)
    refusal(tmp_path, f"config.json: .*: reduction_factor is {shown}, but must be an integer")


def test_a_hidden_size_that_is_no_number_is_named_before_it_is_divided(tmp_path):
    authors_checkpoint(authors_weights(E, True), tmp_path)
    change_config(tmp_path, hidden_size="16")
    refusal(tmp_path, "config.json: .*: hidden_size is '16', but must be an integer")


def test_a_reduction_factor_counts_only_where_adapters_are_used(tmp_path):
    authors_checkpoint(authors_weights(E, False), tmp_path)
    assert read_config(tmp_path / "config.json").adapter_size == 0
    change_config(tmp_path, use_adapter=True)
    assert read_config(tmp_path / "config.json").adapter_size == A
    change_config(tmp_path, reduction_factor=1)
    assert read_config(tmp_path / "config.json").adapter_size == C


def test_a_config_of_a_bert_says_little_and_the_rest_follows(saved):
    """An old BERT has few fields. A null in some of them says no more than a missing field."""
    change_config(saved, hidden_act=REMOVED, embedding_size=REMOVED, num_hidden_groups=REMOVED,
                  adapter_size=REMOVED, tie_decoder=REMOVED, hidden_dropout_prob=REMOVED,
                  model_type=REMOVED, other_field=[1])
    config = read_config(saved / "config.json")
    assert config.embedding_size == C
    assert config.num_hidden_groups == R
    assert config.is_bert
    load(saved)
    change_config(saved, model_type=None, is_decoder=None)
    assert read_config(saved / "config.json") == config


def test_null_does_not_hide_what_a_model_computes(saved):
    change_config(saved, layer_norm_eps=None)
    refusal(saved, "config.json: .*layer_norm_eps is None")


def test_a_folder_without_weights_says_what_was_looked_for(saved):
    (saved / "model.safetensors").unlink()
    refusal(saved, "model.safetensors.*pytorch_model.bin")


class Intruder:
    """An object whose pickle makes a folder where it is opened without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def to_pickle(folder, content):
    """Replace the folder's weights by a pytorch_model.bin that holds `content`."""
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")


def test_a_pickle_that_runs_a_program_is_refused_and_has_not_run(saved):
    to_pickle(saved, {"x": Intruder(saved / "broken-in")})
    refusal(saved, "pytorch_model.bin")
    assert not (saved / "broken-in").exists()


@pytest.mark.parametrize("content, pattern", [
    (None, "it holds a NoneType"),
    ("text", "it holds a str"),
    ([torch.ones(2)], "it holds a list"),
    ({1: 2}, "1 in it is a int"),
    ({"state_dict": {"x": torch.ones(2)}}, "'state_dict' in it is a dict"),
])
def test_a_pickle_that_is_no_dict_of_tensors_is_refused(saved, content, pattern):
    to_pickle(saved, content)
    refusal(saved, f"pytorch_model.bin.*{pattern}")


def test_a_pickle_may_name_a_tensor_by_a_number(saved):
    to_pickle(saved, {1: torch.ones(2), "x": torch.ones(2)})
    assert list(read_weights(saved)) == ["1", "x"]
    refusal(saved, "'1' of shape .2. is not known")


def test_parameters_in_a_pickle_are_read_as_tensors(saved):
    to_pickle(saved, {"x": torch.nn.Parameter(torch.ones(2))})
    weights = read_weights(saved)
    assert torch.equal(weights["x"], torch.ones(2))
    assert not weights["x"].requires_grad


@pytest.mark.skipif(os.name == "nt", reason="such names are those of Linux")
def test_a_file_whose_name_is_not_utf_8_is_read(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/w\xff")
    write_safetensors({"x": torch.ones(3)}, path)
    tensors, _ = read_safetensors(path)
    assert torch.equal(tensors["x"], torch.ones(3))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("old_format", [False, True])
def test_a_damaged_pickle_is_refused(saved, old_format):
    """Files of torch before version 1.6 are no zip archives."""
    to_pickle(saved, {})
    path = saved / "pytorch_model.bin"
    torch.save({"other": torch.ones(2)}, path, _use_new_zipfile_serialization=not old_format)
    content = path.read_bytes()
    path.write_bytes(b"")
    refusal(saved, "pytorch_model.bin")
    rng = random.Random(0)
    for _ in range(50):
        position = rng.randrange(len(content))
        cut = content[:position]
        overwritten = cut + b"\xff" + content[position + 1:]
        damaged = rng.choice([cut, overwritten])
        path.write_bytes(damaged)
        refusal(saved)


@pytest.mark.parametrize("weight_map", [None, [], "x", 1, {"x": 7}, {"x": []}])
def test_an_index_without_a_map_of_files_is_refused(saved, weight_map):
    (saved / "model.safetensors").unlink()
    write_json(saved / "model.safetensors.index.json", {"weight_map": weight_map})
    refusal(saved, "model.safetensors.index.json: not an index of weights")


# ---- The state of a training run --------------------------------------------------------

SETTINGS = {"seed": 3, "layers": (0, 2), "lr": 0.1, "tokenizer": "é", "steps": 9}


def settings_with(**changes):
    """Return the SETTINGS of a run with these changes."""
    settings = SETTINGS.copy()
    settings.update(changes)
    return settings


def training_state(value):
    """Make the tensors of a run {name: tensor}, in which each number is this one."""
    return {"model.x": torch.full([2, 3], value), "adam.x": torch.full([3], value)}


@pytest.fixture
def state_path(tmp_path):
    """Save the state of a run whose tensors are 5, after 7 steps, with a log of 123 bytes."""
    save_training_state(tmp_path / "x", training_state(5.0), 7, 123, SETTINGS)
    return tmp_path / "x"


def test_a_training_state_is_restored_in_place(state_path):
    """The optimizer holds the same tensors, so they must not be replaced by others."""
    state = training_state(0.0)
    tensors = list(state.values())
    assert restore_training_state(state_path, state, SETTINGS) == (7, 123)
    assert_equal_tensors(state, training_state(5.0))
    for tensor, same_tensor in zip(tensors, state.values(), strict=True):
        assert tensor is same_tensor


def test_a_state_of_a_run_with_other_settings_is_refused_and_changes_nothing(state_path):
    state = training_state(0.0)
    settings = settings_with(seed=4, layers=(0, 1))
    message = (r"x is of a run with other settings: seed was 3, now it is 4; "
               r"layers was \[0, 2\], now it is \[0, 1\]\. To go on .*--student")
    with pytest.raises(ValueError, match=message):
        restore_training_state(state_path, state, settings)
    assert_equal_tensors(state, training_state(0.0))


def test_a_run_in_a_subfolder_does_not_belong_to_the_folder(tmp_path):
    """finetune.py makes such subfolders, but without a run.json. One with a run.json is the folder
    of a run of its own."""
    for name in ("a-lr1-seed0", "b-lr1-seed0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "training.safetensors").write_text("x")
    (tmp_path / "a-lr1-seed0" / "run.json").write_text("{}")
    of_b = str(tmp_path / "b-lr1-seed0" / "training.safetensors")
    assert checkpoint.files_of_run(tmp_path) == [of_b]
    (tmp_path / "b-lr1-seed0" / "run.json").write_text("{}")
    assert checkpoint.files_of_run(tmp_path) == []


def test_of_weights_and_shapes_only_what_differs_is_named():
    weights = {"mlm": 1.0, "attention": 3.0, "hidden": 3.0, "output": 5.0, "elastic": 2.5}
    saved = {"weights": weights, "shape": {"rank": 3}}
    checkpoint.check_settings("x", saved, copy.deepcopy(saved))
    other_weights = {"mlm": 1.0, "attention": 3.0, "hidden": 4.0, "output": 5.0}
    message = (r"settings: weights\.elastic was 2\.5, now it is None; "
               r"weights\.hidden was 3\.0, now it is 4\.0; shape\.rank was 3, now it")
    with pytest.raises(ValueError, match=message):
        checkpoint.check_settings("x", saved, {"weights": other_weights, "shape": {"rank": 5}})
    with pytest.raises(ValueError, match="settings: weights was {'mlm': 1.0.*, now it is None"):
        checkpoint.check_settings("x", saved, {"weights": None})


def test_a_setting_that_the_saved_run_does_not_know_is_no_difference(tmp_path):
    """So a new version of the program can resume a run of an older one, and the other way round."""
    save_training_state(tmp_path / "x", training_state(5.0), 7, 123, settings_with(old=1))
    state = training_state(0.0)
    assert restore_training_state(tmp_path / "x", state, settings_with(new=1)) == (7, 123)


@pytest.mark.parametrize("name, tensor, message", [
    ("model.x", torch.zeros(3, 2), r"'model.x' is \[2, 3\], not \[3, 2\]$"),
    ("other", torch.zeros(1), "'other' is missing$")])
def test_a_state_of_another_model_is_refused_and_changes_nothing(
        state_path, name, tensor, message):
    state = training_state(0.0)
    state[name] = tensor
    with pytest.raises(ValueError, match=f"x: {message}"):
        restore_training_state(state_path, state, SETTINGS)
    assert (state["adam.x"] == 0).all()


@pytest.mark.parametrize("metadata", [
    {}, {"run": "{}", "step": "x", "log": "0"}, {"run": "{}", "step": "1"},
    {"run": "[]", "step": "1", "log": "0"}, {"run": "{", "step": "1", "log": "0"},
    {"run": "{}", "step": "1.5", "log": "0"}])
def test_a_file_that_is_no_training_state_is_refused(tmp_path, metadata):
    write_safetensors(training_state(5.0), tmp_path / "x", metadata)
    state = training_state(0.0)
    with pytest.raises(ValueError, match="x: not the state of a training run: [^\n]+$"):
        restore_training_state(tmp_path / "x", state, {"steps": 9})
    assert_equal_tensors(state, training_state(0.0))


# The last one is finite in float64, in which it is stored, but not in float32.
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e300])
def test_a_state_that_is_not_finite_is_refused_and_changes_nothing(tmp_path, value):
    saved_state = training_state(5.0)
    saved_state["adam.x"] = saved_state["adam.x"].double()
    saved_state["adam.x"][1] = value
    save_training_state(tmp_path / "x", saved_state, 7, 123, SETTINGS)
    state = training_state(0.0)
    with pytest.raises(ValueError, match="x: there are values that are not finite in adam.x$"):
        restore_training_state(tmp_path / "x", state, SETTINGS)
    assert_equal_tensors(state, training_state(0.0))


# ---- The folder of a run ----------------------------------------------------------------

SCRIPTS = ["distill.py", "finetune.py"]


def do_run(out, script="distill.py", files=("model.safetensors",), settings=SETTINGS, inputs=(),
           **flags):
    """Do a run that writes these files into its folder, after it has removed an older run."""
    with run_folder(str(out), script, settings, inputs, **flags):
        claim_folder(str(out), script, settings, flags.get("resume", False))
        for name in files:
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_text(script)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("is_empty_folder", [False, True])
def test_a_run_owns_its_folder(tmp_path, script, is_empty_folder):
    out = tmp_path / "out"
    if is_empty_folder:
        out.mkdir()
    do_run(out, script)
    assert sorted(os.listdir(out)) == ["model.safetensors", "run.json"]
    assert read_json(out / "run.json")["script"] == script
    assert read_json(out / "run.json")["settings"] == json.loads(json.dumps(SETTINGS))


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
@pytest.mark.parametrize("name", ["out", "link", "out/", "x/../out"])
def test_a_run_does_not_write_into_a_folder_that_it_reads(tmp_path, name, flags):
    """It may be named in another way, or a file in it may be read, perhaps by a link."""
    out = tmp_path / "out"
    do_run(out)
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to(out)
    (out / "test.jsonl").write_text("{}")
    (tmp_path / "link.jsonl").symlink_to(out / "test.jsonl")
    before = files_below(out)
    other_name = f"{tmp_path}/{name}"
    for written, read in ((out, other_name),
                          (other_name, out),
                          (out, f"{other_name}/test.jsonl"),
                          (other_name, tmp_path / "link.jsonl")):
        with pytest.raises(ValueError, match="^--out .*: this folder is read from"):
            with run_folder(written, "distill.py", SETTINGS, [None, read], **flags):
                pass
    assert files_below(out) == before


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("files, flags, message", [
    (["notes.txt"], {}, "is not empty: --resume goes on .*; or choose another folder"),
    (["pytorch_model.bin", "config.json"], {}, "is not empty"),
    ([".hidden"], {}, "is not empty"),
    (["log.jsonl"], {"resume": True}, "there is no run of {script} in"),
    (["folder/notes.txt"], {"resume": True}, "there is no run of {script} in"),
    (["pytorch_model.bin", "config.json", "vocab.txt"], {"overwrite": True},
     "^--overwrite: {out} is not .* of a run, but it holds {out}/config.json; {out}/vocab.txt$"),
    (["log.jsonl.tmp"], {"overwrite": True}, "but it holds {out}/log.jsonl"),
    (["run.json"], {"overwrite": True}, "run.json: it does not describe a run"),
    (["run.json"], {"resume": True}, "run.json: it does not describe a run")])
def test_a_folder_of_somebody_else_is_refused_and_not_touched(
        tmp_path, script, files, flags, message):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"settings": {}}')
    before = files_below(tmp_path)
    with pytest.raises(ValueError, match=message.format(script=script, out=tmp_path)):
        do_run(tmp_path, script, **flags)
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
@pytest.mark.parametrize("content", ["", '{"script": "distill.py", "settings": {"seed": 1}}'])
def test_a_run_that_was_killed_before_it_wrote_anything_leaves_a_folder_for_any_run(
        tmp_path, script, flags, content):
    (tmp_path / "run.json").write_text(content)
    do_run(tmp_path, script, **flags)
    assert read_json(tmp_path / "run.json")["script"] == script
    assert read_json(tmp_path / "run.json")["settings"]["seed"] == 3


def test_a_run_begins_beside_a_file_of_somebody_else_if_it_would_have_been_resumed(
        tmp_path, capsys):
    """A scheduler writes its log there, and gives --resume each time."""
    (tmp_path / "slurm-1.out").write_text("mine")
    do_run(tmp_path, resume=True)
    assert "there is no run in" in capsys.readouterr().out
    assert (tmp_path / "slurm-1.out").read_text() == "mine"
    do_run(tmp_path, resume=True)
    assert capsys.readouterr().out == ""


def test_the_command_of_a_run_and_the_versions_are_written_for_its_readers(tmp_path, monkeypatch):
    """The name of a file may have bytes that are not UTF-8. They are surrogates in Python."""
    monkeypatch.setattr("sys.argv", ["distill.py", "b\udcff", "\u00e9"])
    do_run(tmp_path)
    run = read_json(tmp_path / "run.json")
    assert run["command"] == ["distill.py", "b?", "\u00e9"]
    assert run["versions"]["torch"] == torch.__version__


def test_an_out_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(ValueError, match="^--out .*/out: this is a file; give the name of a f"):
            do_run(tmp_path / "out", **flags)
    assert (tmp_path / "out").read_text() == "mine"


def test_an_out_that_is_a_link_to_nothing_is_refused(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="^--out .*/out: this is a file; give the name of a f"):
        do_run(tmp_path / "out")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("script, other", [SCRIPTS, SCRIPTS[::-1]])
def test_a_run_goes_on_only_where_it_is_of_the_same_script(tmp_path, script, other):
    do_run(tmp_path / "out", script)
    before = files_below(tmp_path / "out")
    with pytest.raises(ValueError, match=f"--resume: there is no run of {other} in"):
        do_run(tmp_path / "out", other, resume=True)
    assert files_below(tmp_path / "out") == before
    do_run(tmp_path / "out", script, resume=True)
    assert read_json(tmp_path / "out" / "run.json")["script"] == script


def test_a_run_goes_on_only_with_the_same_settings_and_is_told_what_to_do(tmp_path):
    do_run(tmp_path / "out")
    before = files_below(tmp_path / "out")
    message = (r"run\.json is of a run with other settings: steps was 9, now it is 20\. "
               r"To go on .* For other .* another --out; .* distill.py --student")
    with pytest.raises(ValueError, match=message):
        do_run(tmp_path / "out", settings=settings_with(steps=20), resume=True)
    assert files_below(tmp_path / "out") == before


@pytest.mark.parametrize("is_empty_folder", [False, True])
def test_to_resume_where_no_run_is_prints_a_line_and_starts(tmp_path, capsys, is_empty_folder):
    out = tmp_path / "out"
    if is_empty_folder:
        out.mkdir()
    do_run(out, resume=True)
    line = f"--resume: there is no run in {out} yet, so this one starts at step 1\n"
    assert capsys.readouterr().out == line
    do_run(out, resume=True)                             # now there is one
    assert capsys.readouterr().out == ""


def test_a_run_that_goes_on_keeps_its_run_json(tmp_path):
    do_run(tmp_path)
    written = (tmp_path / "run.json").read_bytes()
    do_run(tmp_path, settings=settings_with(new=1), resume=True)
    assert (tmp_path / "run.json").read_bytes() == written
    do_run(tmp_path, settings=settings_with(new=1), overwrite=True)
    assert read_json(tmp_path / "run.json")["settings"]["new"] == 1


@pytest.mark.parametrize("flags", [{"resume": True}, {"overwrite": True}])
def test_a_run_that_fails_before_it_begins_leaves_the_one_before_as_it_was(tmp_path, flags):
    do_run(tmp_path, files=["training.safetensors", "log.jsonl"])
    before = files_below(tmp_path)
    settings = settings_with(new=1)
    with pytest.raises(RuntimeError, match="odd"):
        with run_folder(str(tmp_path), "distill.py", settings, [], **flags):
            raise RuntimeError("odd")
    assert files_below(tmp_path) == before


def test_to_overwrite_removes_all_that_runs_write_and_nothing_else(tmp_path):
    written = ["config.json", "training.safetensors", "log.jsonl", "vocab.txt", "tokenizer.json",
               "tokenizer_config.json", "head.safetensors", "task.json", "results.json",
               "dev.jsonl", "dev_matched.jsonl", "dev_mismatched.jsonl", "test.jsonl",
               "all-lr0.1-seed0/log.jsonl", "all-lr0.1-seed0/training.safetensors",
               "head-lr1e-05-seed3/log.jsonl", "model.safetensors.tmp", "dev.jsonl.tmp",
               "all-lr0.1-seed0/training.safetensors.tmp"]
    mine = ["notes.txt", "dev.tsv", "pytorch_model.bin", "head-lr1e-05-seed3/notes.txt",
            "sub/config.json", "my.jsonl", "train.tsv", "notes.tmp"]
    out = tmp_path / "out"
    do_run(out, "finetune.py", written + mine)
    do_run(out, "distill.py", overwrite=True)
    assert sorted(files_below(out)) == sorted(["run.json", "model.safetensors"] + mine)
    assert not (out / "all-lr0.1-seed0").exists()
    assert read_json(out / "run.json")["script"] == "distill.py"


@pytest.mark.parametrize("is_claimed", [False, True])
def test_a_run_that_writes_nothing_leaves_no_folder(tmp_path, is_claimed):
    """A run.json alone, which claim_folder has written, is of no use."""
    out = tmp_path / "new" / "out"
    with pytest.raises(RuntimeError, match="odd"):
        with run_folder(str(out), "distill.py", SETTINGS, []):
            if is_claimed:
                claim_folder(str(out), "distill.py", SETTINGS, resume=False)
            raise RuntimeError("odd")
    assert not out.exists()


def test_a_run_that_is_interrupted_after_it_wrote_something_leaves_it(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        with run_folder(str(out), "distill.py", SETTINGS, []):
            claim_folder(str(out), "distill.py", SETTINGS, resume=False)
            (out / "log.jsonl").write_text("a step")
            raise KeyboardInterrupt
    assert sorted(os.listdir(out)) == ["log.jsonl", "run.json"]


def test_the_working_directory_as_folder_does_not_hide_the_error(tmp_path, monkeypatch):
    """It is empty after the run has failed, but it cannot be removed."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="odd"):
        with run_folder(".", "distill.py", SETTINGS, []):
            raise RuntimeError("odd")
    assert os.listdir(tmp_path) == []


def test_a_link_as_folder_does_not_hide_the_error(tmp_path):
    """What it leads to is empty after the run has failed, but a link cannot be removed like a
    folder."""
    (tmp_path / "empty").mkdir()
    os.symlink(tmp_path / "empty", tmp_path / "link")
    with pytest.raises(RuntimeError, match="odd"):
        with run_folder(str(tmp_path / "link"), "distill.py", SETTINGS, []):
            raise RuntimeError("odd")
    assert sorted(os.listdir(tmp_path)) == ["empty", "link"]


def hold_folder(out, ready):
    """Hold the folder of a run until this process is killed. A message through the connection
    `ready` says that it is held."""
    with run_folder(out, "distill.py", {}, [], resume=True):
        ready.send("ready")
        time.sleep(60)


def test_one_run_at_a_time_is_in_a_folder_and_a_killed_one_is_gone(forked, tmp_path):
    """The other run is another process. Its lock ends with it, however it ends."""
    out = tmp_path / "out"
    do_run(out)
    receiver, sender = forked.Pipe(duplex=False)
    process = forked.Process(target=hold_folder, args=(str(out), sender), daemon=True)
    process.start()
    sender.close()                                       # the process has its own
    assert receiver.recv() == "ready"
    for flags in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(ValueError, match="out: another run is writing into it$"):
            do_run(out, settings={}, **flags)
    assert (out / "model.safetensors").exists()
    process.kill()
    process.join()
    do_run(out, resume=True, settings={})


def test_a_lock_is_of_one_open_file_and_ends_with_it(tmp_path):
    path = tmp_path / "x"
    path.touch()
    with open(path) as first, open(path) as second:
        lock(first)
        with pytest.raises(ValueError, match=f"{tmp_path}: another run is writing into it"):
            lock(second)
        first.close()
        lock(second)


def assert_nothing_is_locked(tmp_path):
    """Lock a file twice. Where locks work, the second time would be an error."""
    path = tmp_path / "x"
    path.touch()
    with open(path) as first, open(path) as second:
        lock(first)
        lock(second)


def test_without_fcntl_nothing_is_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "fcntl", None)       # as on Windows
    assert_nothing_is_locked(tmp_path)


@pytest.mark.parametrize("number", [
    errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP])
def test_on_a_disk_without_locks_files_are_written_and_runs_begin(tmp_path, monkeypatch, number):
    def refuse(file, operation):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(checkpoint.fcntl, "flock", refuse)
    assert_nothing_is_locked(tmp_path)
    with replace_file(tmp_path / "y", shared=True) as file:
        file.write(b"whole")
    assert (tmp_path / "y").read_bytes() == b"whole"
    do_run(tmp_path / "out")
    assert (tmp_path / "out" / "run.json").exists()


def abandoned_file(path):
    """Make a temporary file that is a little over ten minutes old -> its path."""
    path.write_text("half of it")
    before = time.time() - 610
    os.utime(path, (before, before))
    return path


def test_the_temporary_file_of_another_user_is_left_alone(tmp_path, monkeypatch):
    refused = []

    def refuse(path):
        refused.append(path)
        raise PermissionError(errno.EACCES, "not yours", path)

    path = abandoned_file(tmp_path / "x.0123456789abcdef.tmp")
    with monkeypatch.context() as patch:
        patch.setattr(os, "remove", refuse)
        remove_abandoned(tmp_path / "x")
    assert refused == [str(path)]
    assert path.exists()


def test_a_file_that_has_changed_in_the_last_minutes_is_not_abandoned(tmp_path):
    path = abandoned_file(tmp_path / "x.0123456789abcdef.tmp")
    before = time.time() - 540
    os.utime(path, (before, before))
    remove_abandoned(tmp_path / "x")
    assert path.exists()


# ---- Errors that name the file ----------------------------------------------------------

@pytest.mark.parametrize("raised, message", [
    (ValueError("it is\n  odd"), "the path: not a thing: it is odd"),
    (KeyError("x"), "the path: not a thing: KeyError: 'x'"),
    (RecursionError("deep"), "the path: not a thing: RecursionError: deep"),
    (OSError("no space"), "the path: not a thing: OSError: no space")])
def test_expecting_puts_the_path_in_front_of_an_error(raised, message):
    with pytest.raises(ValueError) as error:
        with expecting("the path", "a thing"):
            raise raised
    assert str(error.value) == message
    assert error.value.__cause__ is raised


@pytest.mark.parametrize("raised", [
    MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    OSError(errno.ENOMEM, "Cannot allocate memory")])
def test_expecting_says_which_file_there_is_no_memory_for(raised):
    with pytest.raises(MemoryError, match="^the path$"):
        with expecting("the path", "a thing"):
            raise raised


def test_a_lack_of_memory_is_not_taken_for_a_damaged_pickle(tmp_path, monkeypatch):
    def load_too_much(path, map_location, weights_only):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    (tmp_path / "x.bin").write_bytes(b"whole")
    monkeypatch.setattr(torch, "load", load_too_much)
    with pytest.raises(MemoryError, match=r"x\.bin$"):
        checkpoint.read_pickle(tmp_path / "x.bin")


def test_expecting_cuts_a_long_error():
    with pytest.raises(ValueError) as error:
        with expecting("the path", "a thing"):
            raise ValueError("x" * 10_000)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("raised", [
    FileNotFoundError(errno.ENOENT, "no such file", "other"), KeyboardInterrupt()])
def test_expecting_does_not_touch_a_missing_file_or_an_interrupt(raised):
    with pytest.raises(type(raised)) as error:
        with expecting("the path", "a thing"):
            raise raised
    assert error.value is raised


# ---- Text and JSON ----------------------------------------------------------------------

READERS = [read_text, read_json, read_safetensors]


@pytest.mark.parametrize("text, value", [
    ("{}", {}),
    ('{"a": [1, -2.5, true, null, {"a": "\\u00e9"}]}', {"a": [1, -2.5, True, None, {"a": "é"}]}),
    ('{"smile": "\\ud83d\\ude42"}', {"smile": "🙂"})])
def test_a_json_object_is_a_dict(text, value):
    assert parse_json_object(text) == value


@pytest.mark.parametrize("text, pattern", [
    ("", "Expecting value"),
    ('{"a": 1,\n"b": x}', "line 2 column 6"),
    ("[1]", "it is a list"),
    ("3", "it is a int"),
    ("null", "it is a NoneType"),
    ('"text"', "it is a str"),
    ("{} {}", "Extra data"),
    ('{"a": "cut \\ud83d"}', r"it has '.ud83d', which is half a character, .*: remove it$"),
    ('{"\\uDfFf": 1}', r"it has '.udfff', which is half a character"),
    ('{"a": 1' + "0" * 5000 + "}", "digits"),
    ('{"a": "x\ny"}', "control character"),
])
def test_a_text_that_is_no_json_object_is_refused(text, pattern):
    with pytest.raises(ValueError, match=pattern):
        parse_json_object(text)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_text_is_read_with_or_without_a_byte_order_mark(tmp_path, mark):
    (tmp_path / "x").write_bytes(mark + '{"é": 1}'.encode())
    assert read_text(tmp_path / "x") == '{"é": 1}'
    assert read_json(tmp_path / "x") == {"é": 1}


@pytest.mark.parametrize("read", [read_text, read_json])
def test_bytes_that_are_no_text_are_refused(tmp_path, read):
    (tmp_path / "x").write_bytes(b'{"\xff": 1}')
    with pytest.raises(ValueError, match=f"^{tmp_path}/x: not text in UTF-8: "):
        read(tmp_path / "x")


@pytest.mark.parametrize("read", READERS)
def test_a_missing_file_stays_a_missing_file(tmp_path, read):
    """It is a FileNotFoundError, not the ValueError of a damaged file."""
    with pytest.raises(FileNotFoundError, match="none"):
        read(tmp_path / "none")


@pytest.mark.parametrize("read", [read_text, read_json])
def test_a_pipe_or_a_folder_is_refused_and_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")                         # nobody writes into it
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises((ValueError, IsADirectoryError), match=name):
            read(tmp_path / name)


@pytest.mark.parametrize("read", [read_text, read_json])
def test_a_text_too_large_for_the_memory_is_refused(tmp_path, monkeypatch, read):
    monkeypatch.setattr(checkpoint, "LARGEST_TEXT", 2000)
    (tmp_path / "x").write_text("{}")
    os.truncate(tmp_path / "x", 2001)                    # a sparse file: it needs no disk
    with pytest.raises(ValueError, match="x: a file of 2,001 bytes is too large here"):
        read(tmp_path / "x")
    (tmp_path / "x").write_text("{}" + " " * 1998)
    read(tmp_path / "x")


# ---- Writing ----------------------------------------------------------------------------

def write(path, *parts):
    """Write a file in several parts with replace_file."""
    with replace_file(path) as file:
        for part in parts:
            file.write(part)


@pytest.mark.parametrize("shared", [False, True])
def test_the_old_file_stays_until_the_block_ends(tmp_path, shared):
    write(tmp_path / "x", b"old")
    with replace_file(tmp_path / "x", shared) as file:
        file.write(b"new")
        file.flush()
        assert (tmp_path / "x").read_bytes() == b"old"
    assert files_below(tmp_path) == {"x": b"new"}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("raised", [
    RuntimeError("odd"), ValueError("odd"), KeyboardInterrupt("odd"), SystemExit("odd")])
def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path, raised, shared):
    write(tmp_path / "x", b"old")
    with pytest.raises(type(raised), match="odd"):
        with replace_file(tmp_path / "x", shared) as file:
            file.write(b"half of the ne")
            raise raised
    assert files_below(tmp_path) == {"x": b"old"}


def test_a_write_that_fails_leaves_the_old_file_and_names_it(tmp_path):
    write(tmp_path / "x", b"old")
    with pytest.raises(OSError, match="no space left") as error:
        with replace_file(tmp_path / "x") as file:
            file.write(b"new")
            raise OSError(errno.ENOSPC, "no space left")
    assert error.value.filename == str(tmp_path / "x")
    assert files_below(tmp_path) == {"x": b"old"}


def test_the_error_of_a_full_disk_keeps_its_number_and_gets_a_name(tmp_path):
    with pytest.raises(OSError) as error:
        with replace_file(tmp_path / "x"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert error.value.errno == errno.ENOSPC
    assert str(error.value) == f"[Errno 28] No space left on device: '{tmp_path}/x'"


def test_an_error_that_names_its_file_keeps_the_name(tmp_path):
    other = tmp_path / "other"
    with pytest.raises(FileNotFoundError) as error:
        with replace_file(tmp_path / "x"):
            open(other)
    assert error.value.filename == str(other)
    with pytest.raises(FileNotFoundError, match="none/x"):
        write(tmp_path / "none" / "x", b"new")


def test_processes_that_share_a_path_write_under_names_of_their_own(tmp_path):
    path = tmp_path / "x"
    with replace_file(path, shared=True) as first:
        with replace_file(path, shared=True) as second:
            assert first.name != second.name
            first.write(b"first")
            second.write(b"second")
        assert files_below(tmp_path)["x"] == b"second"
    assert files_below(tmp_path) == {"x": b"first"}


def test_only_abandoned_files_of_a_path_are_removed(tmp_path):
    kept = ["x", "x.0123456789abcdef.tmp.old", "x.2024.tmp", "x.own.tmp", "x.tmp",
            "y.0123456789abcdef.tmp"]
    for name in kept + ["x.0123456789abcdef.tmp"]:
        abandoned_file(tmp_path / name)
    remove_abandoned(tmp_path / "x")
    assert sorted(os.listdir(tmp_path)) == kept


def test_a_link_with_the_name_of_the_temporary_file_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    os.symlink(tmp_path / "mine", tmp_path / "x.tmp")
    write_json(tmp_path / "x", {"new": 1})
    assert read_json(tmp_path / "x") == {"new": 1}
    assert (tmp_path / "mine").read_text() == "mine"


def test_the_next_write_removes_what_a_killed_one_left(tmp_path):
    abandoned_file(tmp_path / "[x].0a1b2c3d4e5f6071.tmp")
    write_json(tmp_path / "[x]", {}, shared=True)
    assert os.listdir(tmp_path) == ["[x]"]


def test_an_abandoned_file_that_is_gone_in_the_meantime_is_no_error(tmp_path, monkeypatch):
    """Another process has removed it after this one has found it."""
    def find_what_is_gone(pattern):
        return [str(tmp_path / "x.1.tmp")]

    monkeypatch.setattr(checkpoint.glob, "glob", find_what_is_gone)
    remove_abandoned(tmp_path / "x")


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Otherwise a power cut could leave an empty file under the name of the old one."""
    sizes_on_disk = []

    def note_flush(descriptor):
        sizes_on_disk.append(os.fstat(descriptor).st_size)
        assert not (tmp_path / "x").exists()

    monkeypatch.setattr(os, "fsync", note_flush)
    write(tmp_path / "x", b"new")
    assert sizes_on_disk == [3]


@pytest.mark.parametrize("shared", [False, True])
def test_json_that_is_written_is_read(tmp_path, shared):
    write_json(tmp_path / "x", {"old": 1}, shared)
    value = {"é": [1, 2.5, None, True], "a": {"b": "🙂"}}
    write_json(tmp_path / "x", value, shared)
    assert read_json(tmp_path / "x") == value
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("shared, temporary", [(False, "x.tmp"), (True, "x.0a0b.tmp")])
def test_json_has_another_name_until_it_is_written(tmp_path, monkeypatch, shared, temporary):
    renamed = []

    def note_renaming(source, target):
        renamed.append((source, target))

    def urandom(size):
        return b"\x0a\x0b"

    monkeypatch.setattr(os, "urandom", urandom)
    monkeypatch.setattr(os, "replace", note_renaming)
    write_json(tmp_path / "x", {"new": 1}, shared)
    assert renamed == [(f"{tmp_path}/{temporary}", tmp_path / "x")]
    assert os.listdir(tmp_path) == []


# ---- Models by name ---------------------------------------------------------------------

def replace_hub(monkeypatch, folder, files=(), error=None):
    """Put a hub with these files, or one that raises this error, in the place of the true one.

    What is fetched is written into the folder. Returns the list of the patterns that the hub is
    asked for, which grows with each call.
    """
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append(allow_patterns)
        if error is not None:
            raise error
        for file in files:
            if fnmatch.fnmatch(file, str(allow_patterns)):
                (folder / file).write_text("x")
        return str(folder)

    stand_in = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    return asked


@pytest.mark.parametrize("files, weight_files_asked_for", [
    (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
    (["model.safetensors.index.json", "model-00001-of-00002.safetensors", "pytorch_model.bin"],
     ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]),
    (["model.fp16.safetensors", "pytorch_model.bin"], checkpoint.WEIGHT_FILES)])
def test_of_the_weights_only_the_first_kind_is_fetched(
        monkeypatch, tmp_path, files, weight_files_asked_for):
    """Many models are on the hub in several kinds of files, and each may have gigabytes."""
    (tmp_path / "config.json").write_text("x")
    asked = replace_hub(monkeypatch, tmp_path, files)
    assert fetch("someone/bert") == str(tmp_path)
    assert asked == [SMALL_FILES] + weight_files_asked_for


def test_what_the_hub_does_not_have_is_named(monkeypatch, tmp_path):
    replace_hub(monkeypatch, tmp_path, ["config.json"])
    with pytest.raises(ValueError, match="^someone/bert: .*no model.safetensors or mod"):
        fetch("someone/bert")


def test_weights_in_several_bin_files_are_refused(saved):
    os.rename(saved / "model.safetensors", saved / "pytorch_model.bin.index.json")
    refusal(saved, "its weights are split over several .bin files, which are not read here; ")


@pytest.mark.parametrize("name", ["bert_model.ckpt.index", "tf_model.h5"])
def test_weights_of_tensorflow_are_refused(saved, name):
    os.rename(saved / "model.safetensors", saved / name)
    refusal(saved, "its weights are TensorFlow's, which are not read here; open it in transformers")


def test_a_config_with_googles_name_is_to_be_copied(saved):
    os.rename(saved / "config.json", saved / "bert_config.json")
    refusal(saved, "it has no config.json; copy its bert_config.json to config.json")
    (saved / "config.json").write_bytes((saved / "bert_config.json").read_bytes())
    load(saved)


class HttpError(Exception):
    """An error of a class that nothing here knows."""


@pytest.mark.parametrize("error", [
    OSError("no net\nread the manual"), ValueError("bad name\n\n"), OSError(), HttpError("404\n")])
def test_what_the_hub_refuses_is_one_line(error, monkeypatch, tmp_path):
    replace_hub(monkeypatch, tmp_path, error=error)
    with pytest.raises(ValueError, match="^some/bert: there is no such folder, [^\n]+$"):
        fetch("some/bert")
