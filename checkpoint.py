"""Load and save models in the safetensors format. Save and resume training runs.

    from checkpoint import load, save
    model = load("bert-base-uncased/")      # a BERT, a MiniALBERT of ours or of the paper's authors
    save(model, "out/student")              # config.json and model.safetensors

A safetensors file has three parts, one after the other:

    8 bytes     the size of the header, a little-endian integer
    header      JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
    data        the bytes of all tensors, without gaps; data_offsets count from its first byte

Files may come from strangers, so they are checked. A faulty file, or a folder without weights,
raises a ValueError (see expecting). Its message is one line and names the file or the folder. A
single file that is missing, or that this user is not allowed to read, raises an OSError. A file
that needs more memory than the machine has raises a MemoryError.
"""
import glob
import json
import math
import os
import pickle
import platform
import re
import sys
import time
import warnings
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from command import first_few, is_about_memory, one_line
from minialbert import Config, MiniALBERT, keep_recursions

try:
    import fcntl
except ImportError:                 # Windows has no fcntl, so nothing is locked there
    fcntl = None

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}
MOST_DIMENSIONS = 64                # some of torch's operations, such as any(), allow no more


# ---- Reading and writing safetensors ----------------------------------------------------

def read_safetensors(path):
    """Map a safetensors file into memory -> the tensors {name: tensor}, the metadata {name: text}.

    The bytes of a tensor are read from the disk when they are first used. A tensor is copied at
    once only if it does not begin at a multiple of its element's size. Writing into a tensor does
    not change the file. ValueError if the file is not well-formed.
    """
    size = os.path.getsize(path)
    with expecting(path, "a safetensors file"):
        if size < 8:
            raise ValueError("it is shorter than 8 bytes, so it has no header")
        check_no_lfs_pointer(path)
        # mode="c" is copy-on-write: what is written stays in memory and never reaches the file.
        file_bytes = np.memmap(path, np.uint8, mode="c")                      # (size,)
        header_size = int.from_bytes(file_bytes[:8].tobytes(), "little")
        data_begin = 8 + header_size
        if data_begin > size:
            raise ValueError(f"its header claims {header_size} bytes, but only {size - 8} follow")
        with expecting("its header", "a JSON object"):
            header_text = file_bytes[8:data_begin].tobytes().decode()
            header = parse_json_object(header_text)
        metadata = header.pop("__metadata__", {})
        check_header(header, metadata, size - data_begin)
        data = torch.from_numpy(file_bytes)[data_begin:]
        tensors = {}
        for name, entry in header.items():
            dtype = DTYPES[entry["dtype"]]
            begin, end = entry["data_offsets"]
            tensor_bytes = data[begin:end]
            # view(dtype) demands that tensor_bytes begin at a multiple of dtype.itemsize.
            # storage_offset() is counted from the beginning of the file.
            if tensor_bytes.storage_offset() % dtype.itemsize != 0:
                tensor_bytes = tensor_bytes.clone()      # a copy begins at 0 in its own memory
            tensors[name] = tensor_bytes.view(dtype).view(entry["shape"])
    return tensors, metadata


def check_header(header, metadata, data_size):
    """Raise ValueError unless all entries are valid and the tensors fill the data, which has
    data_size bytes, without gaps and without overlaps."""
    if not isinstance(metadata, dict):
        raise ValueError("'__metadata__' is not a JSON object")
    for value in metadata.values():
        if not isinstance(value, str):
            raise ValueError(f"'__metadata__' contains {value!r:.40}, which is not text")
    for name, entry in header.items():
        with expecting(f"{name!r:.200}", "the entry of a tensor"):
            check_entry(entry)
    position = 0
    for name in sorted(header, key=lambda name: header[name]["data_offsets"]):
        begin, end = header[name]["data_offsets"]
        if begin != position:
            raise ValueError(f"{name!r:.200} begins at byte {begin} of the data, not at byte "
                             f"{position}")
        position = end
    if position != data_size:
        raise ValueError(f"the last tensor ends at byte {position} of the data, "
                         f"but the end of the data is at byte {data_size}")


def check_entry(entry):
    """Raise an error unless the header's entry of a single tensor is valid."""
    dtype = entry["dtype"]
    shape = entry["shape"]
    begin, end = entry["data_offsets"]
    if dtype not in DTYPES:
        raise ValueError(f"the dtype {dtype!r:.40} is not known")
    if len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"it has {len(shape)} dimensions, but at most {MOST_DIMENSIONS} are "
                         "allowed")
    for value in shape + [begin, end]:
        if type(value) is not int or value < 0:          # isinstance would accept True
            raise ValueError(f"{value!r:.40} in its shape or data_offsets is not a whole number "
                             "from 0")
    needed = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != needed:
        raise ValueError(f"it has {end - begin} bytes, but its shape needs {needed}")


def write_safetensors(tensors, path, metadata=None):
    """Write tensors {name: tensor} and metadata {name: text}. An older file is replaced."""
    code_of_dtype = {dtype: code for code, dtype in DTYPES.items()}
    # Larger elements come first, so that every tensor begins at a multiple of its element's size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    if metadata is None:
        metadata = {}
    header = {"__metadata__": metadata}
    contents = []
    position = 0
    for name in names:
        tensor = tensors[name].detach().cpu().contiguous()
        header[name] = {"dtype": code_of_dtype[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [position, position + tensor.nbytes]}
        # A numpy array can be written to a file, but numpy has no bfloat16. So the array holds
        # single bytes. The tensor is made flat first, because a scalar has no view as bytes.
        flat = tensor.view(-1)
        contents.append(flat.view(torch.uint8).numpy())
        position += tensor.nbytes
    header_bytes = json.dumps(header).encode()
    while len(header_bytes) % 8 != 0:                    # the data must begin at a multiple of 8
        header_bytes += b" "
    with replace_file(path) as file:
        file.write(len(header_bytes).to_bytes(8, "little"))
        file.write(header_bytes)
        for content in contents:
            file.write(content)


# ---- Loading and saving a model ---------------------------------------------------------

# The names of the modules in a file follow one of two layouts, BERT's or ALBERT's. A layout is a
# dict {our name: name in a file}. The sign '#' stands for the number of a layer or a recursion.
# A module that is not in the dict, such as corrections.#.query, has our name in files, too.

# These names are the same in both layouts. The adapters are named as in the authors' files.
IN_BOTH_LAYOUTS = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.segment": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "embeddings.project": "encoder.embedding_hidden_mapping_in",
    "attention_adapters.#.down": "att_adapters.#.block.0",
    "attention_adapters.#.up": "att_adapters.#.block.2",
    "attention_adapters.#.norm": "att_adapters.#.norm",
    "feed_forward_adapters.#.down": "mlp_adapters.#.block.0",
    "feed_forward_adapters.#.up": "mlp_adapters.#.block.2",
    "feed_forward_adapters.#.norm": "mlp_adapters.#.norm",
}
BERT_LAYOUT = IN_BOTH_LAYOUTS | {
    "layers.#.attention.query": "encoder.layer.#.attention.self.query",
    "layers.#.attention.key": "encoder.layer.#.attention.self.key",
    "layers.#.attention.value": "encoder.layer.#.attention.self.value",
    "layers.#.attention.output": "encoder.layer.#.attention.output.dense",
    "layers.#.attention_norm": "encoder.layer.#.attention.output.LayerNorm",
    "layers.#.intermediate": "encoder.layer.#.intermediate.dense",
    "layers.#.output": "encoder.layer.#.output.dense",
    "layers.#.norm": "encoder.layer.#.output.LayerNorm",
    "head.dense": "cls.predictions.transform.dense",
    "head.norm": "cls.predictions.transform.LayerNorm",
    "head.decoder": "cls.predictions.decoder",
    "head": "cls.predictions",                           # for the parameter head.bias
}
LAYER_IN_ALBERT = "encoder.albert_layer_groups.#.albert_layers.0"
ALBERT_LAYOUT = IN_BOTH_LAYOUTS | {
    "layers.#.attention.query": f"{LAYER_IN_ALBERT}.attention.query",
    "layers.#.attention.key": f"{LAYER_IN_ALBERT}.attention.key",
    "layers.#.attention.value": f"{LAYER_IN_ALBERT}.attention.value",
    "layers.#.attention.output": f"{LAYER_IN_ALBERT}.attention.dense",
    "layers.#.attention_norm": f"{LAYER_IN_ALBERT}.attention.LayerNorm",
    "layers.#.intermediate": f"{LAYER_IN_ALBERT}.ffn",
    "layers.#.output": f"{LAYER_IN_ALBERT}.ffn_output",
    "layers.#.norm": f"{LAYER_IN_ALBERT}.full_layer_layer_norm",
    "head.dense": "vocab_transform",                     # the authors' names of the head
    "head.norm": "vocab_layer_norm",
    # In files these two are one module: its weight is that of head.decoder, its bias that of head.
    "head.decoder": "vocab_projector",
    "head": "vocab_projector",
}


def name_in_file(layout, name):
    """Translate our name of a parameter into its name in a layout. In BERT's layout
    "layers.3.output.bias" becomes "encoder.layer.3.output.dense.bias"."""
    module, leaf = name.rsplit(".", 1)                   # "layers.3.output", "bias"
    numbers = re.findall("[0-9]+", module)               # ["3"]
    module = re.sub("[0-9]+", "#", module)               # "layers.#.output"
    file_module = layout.get(module, module)             # our name, if it is not in the layout
    for number in numbers:
        file_module = file_module.replace("#", number, 1)
    return f"{file_module}.{leaf}"


def load(path, recursions=None):
    """Load the model in a folder, in float32 and in eval mode.

    The folder holds a BERT, a MiniALBERT of ours or one of the authors'. model.head is None if
    the folder's model has no masked-language-model head. recursions: the number of recursions to
    use, counted from the first; None means all. ValueError says which tensors are unknown, missing,
    of a wrong shape or not finite.
    """
    if not os.path.isdir(path):
        raise ValueError(f"{path}: this is not a folder; checkpoint.fetch() downloads a model of "
                         "the Hugging Face hub and returns its folder")
    config_path = os.path.join(path, "config.json")
    # Google's BERTs and the ones that were made with Google's program, such as BioBERT and SciBERT,
    # are published with a config of this name.
    if os.path.isfile(os.path.join(path, "bert_config.json")) and not os.path.isfile(config_path):
        raise ValueError(f"{path}: it has no config.json; copy its bert_config.json to config.json")
    config = read_config(config_path)
    tensors = with_usual_names(read_weights(path))
    layout = ALBERT_LAYOUT
    # Names begin like this only in BERT's layout.
    if any(name.startswith("encoder.layer.") for name in tensors):
        layout = BERT_LAYOUT
    tensors = without_identity_projection(tensors, layout, config)
    # The names of a head begin with vocab_ in ALBERT's layout, with cls.predictions in BERT's.
    has_head = any(name.startswith(("vocab_", "cls.predictions")) for name in tensors)
    # A model without a head counts as tied.
    is_tied = not has_head or decoder_is_tied(tensors, layout, config)
    config = replace(config, tie_decoder=is_tied)
    if is_tied:                                          # our model uses the word table instead
        tensors.pop(name_in_file(layout, "head.decoder.weight"), None)
    model = model_without_values(config, has_head)
    # The model's own tensors hold no data. assign=True replaces them by the loaded weights.
    model.load_state_dict(take_weights(path, tensors, model, layout), assign=True)
    if recursions is not None:
        keep_recursions(model, recursions)
    return model.eval()


def take_weights(path, tensors, model, layout):
    """Copy the tensors {name in the file: tensor} -> the float32 weights {our name: tensor} of the
    model. Each tensor is removed from `tensors` when it has been copied, so that its memory can be
    freed. ValueError if they are not the tensors of the model, or if a value is not finite."""
    expected = {}                                        # {name in the file: tensor}
    for name, tensor in model.state_dict().items():
        expected[name_in_file(layout, name)] = tensor
    check_tensors(path, expected, tensors)               # from here on both have the same names
    weights = {}                                         # {our name: tensor}
    for name in model.state_dict():
        stored = tensors.pop(name_in_file(layout, name))
        # The file may change while it is mapped into memory. A copy does not depend on it. A file
        # that was converted from TensorFlow may hold matrices column by column. The copy is row by
        # row, because NCCL sends only tensors in this order from GPU to GPU.
        weights[name] = stored.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    # The values are checked after the conversion, because a huge float64 becomes inf in float32.
    check_finite(path, weights)
    return weights


# Each config.json must have these fields. All other fields have defaults.
REQUIRED_FIELDS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                   "intermediate_size", "max_position_embeddings", "type_vocab_size")
# A config may lack these fields. A field that it has must have this value, because a model here
# computes nothing else. is_decoder would mean that a token sees only the tokens before it.
# inner_group_num is the number of layers in a group of an ALBERT.
ONLY_VALUES = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False,
               "inner_group_num": 1}


def read_config(path):
    """Read the config.json of a BERT or of a MiniALBERT, the authors' or ours -> Config."""
    found = read_json(path)
    # In these two fields null means only that the field is not set.
    for name in ("model_type", "is_decoder"):
        if name in found and found[name] is None:
            del found[name]
    with expecting(path, "a config that can be used here"):
        model_type = found.get("model_type", "bert")     # an old config of a BERT has none
        if model_type not in ("bert", "albert", "minialbert"):
            # For example, a RoBERTa has the same tensors as a BERT, but its positions begin at 2. A
            # DistilBERT has other names for fields, so ONLY_VALUES would not check its activation.
            raise ValueError(f"model_type is {model_type!r:.40}, but only bert, albert and "
                             "minialbert are known here")
        if model_type == "albert":
            # transformers' default for an ALBERT is gelu_new. The loop below refuses it.
            found.setdefault("hidden_act", "gelu_new")
        for name, only_value in ONLY_VALUES.items():
            value = found.get(name, only_value)
            if value != only_value:
                raise ValueError(f"{name} is {value!r:.40}, but only {only_value!r} is known here")
        for name in REQUIRED_FIELDS:
            if name not in found:
                raise ValueError(f"it has no {name!r}")
        # An ordinary BERT's config has no embedding_size and no num_hidden_groups. Its embeddings
        # are as wide as its hidden states (E = C), and no layer is applied twice (G = R).
        found.setdefault("embedding_size", found["hidden_size"])
        found.setdefault("num_hidden_groups", found["num_hidden_layers"])
        config_values = {}
        for field in fields(Config):
            if field.name in found:                      # otherwise Config has a default
                config_values[field.name] = found[field.name]
        config = Config(**config_values)
        # The authors' config has reduction_factor in place of adapter_size A: A is
        # C // reduction_factor. This comes after Config(...), because Config has checked C.
        if found.get("use_adapter"):
            factor = found.get("reduction_factor")
            if type(factor) is not int or factor < 1:
                raise ValueError(f"reduction_factor is {factor!r:.40}, but must be an integer of "
                                 "at least 1")
            config = replace(config, adapter_size=config.hidden_size // factor)
        return config


def read_weights(path):
    """Read all tensors of a checkpoint folder: {name in the file: tensor}."""
    present = os.listdir(path)
    if "model.safetensors" in present:
        tensors, _ = read_safetensors(os.path.join(path, "model.safetensors"))
        return tensors
    if "model.safetensors.index.json" in present:
        return read_shards(path)
    if "pytorch_model.bin" in present:
        return read_pickle(os.path.join(path, "pytorch_model.bin"))
    if "pytorch_model.bin.index.json" in present:
        raise ValueError(f"{path}: its weights are split over several .bin files, which are not "
                         "read here; open it in transformers and save it again, as safetensors")
    if any(name.endswith((".ckpt.index", ".h5")) for name in present):
        raise ValueError(f"{path}: its weights are TensorFlow's, which are not read here; open it "
                         "in transformers 4 with from_tf=True and save it again")
    raise ValueError(f"{path}: it has no model.safetensors, no model.safetensors.index.json "
                     "and no pytorch_model.bin")


def read_shards(path):
    """Read a checkpoint that is split over several files. The "weight_map" of its index is a dict
    {name of a tensor: name of its file}, but only the names of the files are used here."""
    index_path = os.path.join(path, "model.safetensors.index.json")
    index = read_json(index_path)
    with expecting(index_path, "an index of weights"):
        file_names = set(index["weight_map"].values())
        shard_paths = [os.path.join(path, name) for name in sorted(file_names)]
    tensors = {}
    for shard_path in shard_paths:
        shard, _ = read_safetensors(shard_path)
        tensors.update(shard)
    return tensors


def read_pickle(path):
    """Read a pytorch_model.bin -> {name: tensor}. Loading a pickle can run any program;
    weights_only=True prevents this."""
    with expecting(path, "a file of PyTorch weights"), warnings.catch_warnings():
        warnings.simplefilter("ignore")                  # expecting says in one line what is wrong
        check_no_lfs_pointer(path)
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError) as error:
            if is_about_memory(error):
                raise
            # torch's own messages recommend weights_only=False, which is unsafe.
            raise ValueError("it is damaged, or no pickle, or holds more than tensors") from error
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}, not a dict of tensors")
        tensors = {}
        for name, tensor in found.items():
            if not isinstance(tensor, torch.Tensor):
                raise ValueError(f"{name!r:.60} in it is a {type(tensor).__name__}, not a tensor")
            tensors[str(name)] = tensor.detach()
        return tensors


# A name in a file may have several spellings. with_usual_names makes them one: it replaces what
# matches the pattern on the left by the text on the right.
SPELLINGS = [
    (r"^((bert|albert|module)\.)+", ""),     # torch's DataParallel adds "module."
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
    (r"^projector\.", "encoder.embedding_hidden_mapping_in."),      # in the authors' files
]
# Tensors whose names begin like this are ignored: the pooler, BERT's next-sentence head, the buffer
# position_ids, which holds 0, 1, 2, ..., and the task head of a BERT that was fine-tuned with
# transformers.
UNUSED = re.compile(r"pooler\.|cls\.seq_relationship\.|embeddings\.position_ids$"
                    r"|classifier\.|qa_outputs\.")


def with_usual_names(tensors):
    """Return the tensors {name: tensor} under the names of the layouts, without the UNUSED ones."""
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, usual in SPELLINGS:
            name = re.sub(pattern, usual, name)
        if not UNUSED.match(name):
            renamed[name] = tensor
    if "cls.predictions.decoder.bias" in renamed:
        # A BERT may store the head's bias twice. As in transformers, the decoder's is used.
        renamed["cls.predictions.bias"] = renamed.pop("cls.predictions.decoder.bias")
    return renamed


def without_identity_projection(tensors, layout, config):
    """Return the tensors without the embeddings' projection if it is the identity. An ALBERT has a
    projection even if E = C; our model then has none."""
    kept = dict(tensors)
    weight_name = name_in_file(layout, "embeddings.project.weight")
    bias_name = name_in_file(layout, "embeddings.project.bias")
    if weight_name in tensors and bias_name in tensors:
        C = config.hidden_size
        weight = tensors[weight_name]
        # C comes from a file, and torch.eye(C) may need all memory. So the shape is compared first.
        if list(weight.shape) == [C, C]:
            is_identity = torch.equal(weight.float(), torch.eye(C))
            if is_identity and not tensors[bias_name].any():
                del kept[weight_name]
                del kept[bias_name]
    return kept


def decoder_is_tied(tensors, layout, config):
    """Return True if the head's decoder is tied, that is, if it is the word table.

    If config.tie_decoder is False, the decoder is a matrix of its own, even if its values do not
    differ from the word table yet. Only save() writes this field into a config.json. If it is
    missing there, config.tie_decoder is True.

    If config.tie_decoder is True, the tensors decide. The decoder is tied if it has the values of
    the word table, or if there is no decoder. If the word table is missing, the result does not
    matter: take_weights will refuse the tensors.
    """
    if not config.tie_decoder:
        return False
    decoder = tensors.get(name_in_file(layout, "head.decoder.weight"))
    word_table = tensors.get(name_in_file(layout, "embeddings.word.weight"))
    if decoder is None or word_table is None:
        return True
    return torch.equal(decoder.float(), word_table.float())


def model_without_values(config, has_head):
    """Make a model whose tensors have names, shapes and dtypes, but no values. It takes no memory
    and draws no random numbers."""
    with torch.device("meta"), SkipNormal():             # on this device tensors have no values
        return MiniALBERT(config, has_head)


class SkipNormal(TorchFunctionMode):
    """A context in which nn.init.normal_ does nothing. nn.Embedding calls it for its first values.

    On the device "meta" it would draw nothing, but it would make torch import its compiler, and
    that takes almost as long as `import torch`.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        # In this context torch calls this method in place of its functions, such as normal_.
        if function is nn.init.normal_:
            return None
        if kwargs is None:
            kwargs = {}
        return function(*args, **kwargs)


def check_tensors(what, expected, tensors):
    """Raise ValueError unless the tensors {name: tensor} are floats and have the names and the
    shapes of the expected ones. what: whose tensors they are, usually the path of a file."""
    # The message shows only the first few problems. Missing tensors come last, because the unknown
    # names tell more about what kind of file this is.
    problems = []
    missing = []
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            missing.append(f"{name!r} is missing")
        elif name not in expected:
            problems.append(f"{name!r} of shape {list(tensors[name].shape)} is not known")
        elif not tensors[name].is_floating_point():
            problems.append(f"{name!r} is of type {tensors[name].dtype}, not a float of 16, 32 or "
                            "64 bits")
        elif tensors[name].shape != expected[name].shape:
            problems.append(f"{name!r} is {list(tensors[name].shape)}, "
                            f"not {list(expected[name].shape)}")
    problems += missing
    if problems:
        raise ValueError(f"{what}: {first_few(problems)}")


def check_finite(path, tensors):
    """Raise ValueError if one of the tensors {name: tensor} has a value that is inf or nan."""
    names = []
    for name, tensor in tensors.items():
        # If a value is nan, smallest and largest are nan. aminmax takes a sixth of the time of
        # tensor.isfinite().all().
        smallest, largest = tensor.aminmax()
        if not (smallest.isfinite() and largest.isfinite()):
            names.append(name)
    if names:
        raise ValueError(f"{path}: there are values that are not finite in {first_few(names)}")


def save(model, path):
    """Write config.json and model.safetensors into the folder `path`. A missing folder is made.

    What transformers can open depends on the model:
    - A BERT is written in BERT's layout, and transformers opens it with its head.
    - A MiniALBERT without adapters and corrections is written in ALBERT's layout, and transformers
      opens it as an AlbertModel, without its head.
    - Any other MiniALBERT is written in ALBERT's layout, too, but with the model_type "minialbert",
      which transformers' AutoModel does not know and refuses.

    ValueError if the model has other tensors than its config says: load() could not read its files.
    If torch.compile has wrapped the model, the files are the same as without torch.compile.
    """
    model = getattr(model, "_orig_mod", model)           # torch.compile keeps the model there
    config = model.config
    expected = model_without_values(config, model.head is not None).state_dict()
    check_tensors("the model", expected, model.state_dict())
    tensors = {}     # {name in the file: tensor}; some of them are only for transformers
    # `family` is the beginning of a class name, such as Bert in transformers' BertForMaskedLM. In
    # lower case, `family` is the model_type.
    if config.is_bert:
        family = "Bert"
        layout = BERT_LAYOUT
        if model.head is not None and model.head.decoder is not None:
            # transformers looks for the bias of an untied decoder under this second name.
            tensors["cls.predictions.decoder.bias"] = model.head.bias
    elif not config.has_own_parts:
        family = "Albert"
        layout = ALBERT_LAYOUT
        tensors = albert_only_layers(config)
    else:
        family = "MiniALBERT"
        layout = ALBERT_LAYOUT
    for name, tensor in model.state_dict().items():
        stored_name = name_in_file(layout, name)
        if config.is_bert and not stored_name.startswith("cls."):
            stored_name = "bert." + stored_name          # as in transformers
        tensors[stored_name] = tensor
    os.makedirs(path, exist_ok=True)
    write_safetensors(tensors, os.path.join(path, "model.safetensors"), {"format": "pt"})
    write_json(os.path.join(path, "config.json"), contents_of_config(model, family))


def contents_of_config(model, family):
    """Return what save() writes into config.json, a dict. family: see save"""
    # The head of an "Albert" is written, but AlbertForMaskedLM has another head than our models. So
    # the config names AlbertModel, which has none.
    if model.head is None or family == "Albert":
        architecture = family + "Model"
    else:
        architecture = family + "ForMaskedLM"
    contents = {"model_type": family.lower(), "hidden_act": ONLY_VALUES["hidden_act"],
                "inner_group_num": ONLY_VALUES["inner_group_num"],
                # load() does not read these two. They are for transformers.
                "architectures": [architecture], "tie_word_embeddings": model.config.tie_decoder}
    contents.update(asdict(model.config))
    return contents


def albert_only_layers(config):
    """Make the tensors {name: tensor} of the linear layers that an ALBERT has and our model lacks.
    They are identities.

    Without them transformers.AlbertModel would report missing weights.
    """
    C = config.hidden_size
    names = ["pooler"]
    if config.embedding_size == C:
        names.append(ALBERT_LAYOUT["embeddings.project"])
    tensors = {}
    for name in names:
        tensors[f"{name}.weight"] = torch.eye(C)
        tensors[f"{name}.bias"] = torch.zeros(C)
    return tensors


# ---- Saving and resuming a training run -------------------------------------------------

def save_training_state(path, state, step, log_size, settings):
    """Write everything that is needed to resume a run.

    state: the tensors {name: tensor} of the model and of the optimiser
    step: the number of steps done
    log_size: how many bytes of log.jsonl were written by then
    settings: a dict of what a resumed run must have in common with this one
    """
    # All metadata must be texts. The names "step", "log" and "run" are part of the format, so they
    # must not change.
    metadata = {"step": str(step), "log": str(log_size), "run": json.dumps(settings)}
    write_safetensors(state, path, metadata)


@torch.no_grad()
def restore_training_state(path, state, settings):
    """Copy a saved state into the tensors of `state` -> (number of steps done, size of the log).

    settings: a dict of what the run must have in common with the saved one
    ValueError if the saved run had other settings or a model of another shape, or if its state
    has a value that is inf or nan. After an error nothing has been copied.
    """
    tensors, metadata = read_safetensors(path)
    with expecting(path, "the state of a training run"):
        saved_settings = parse_json_object(metadata["run"])
        step = int(metadata["step"])
        log_size = int(metadata["log"])
    check_settings(path, saved_settings, settings)
    check_tensors(path, state, tensors)
    for name in state:
        tensors[name] = tensors[name].to(state[name].dtype)
    check_finite(path, tensors)
    for name, tensor in state.items():
        tensor.copy_(tensors[name])
    return step, log_size


def check_settings(path, saved, settings):
    """Raise ValueError if a run that is to be resumed had other settings than it has now.

    saved: the settings that were read from `path`
    settings: those of the present run. A setting that only one of the two dicts has is ignored
    """
    settings = json.loads(json.dumps(settings))          # tuples become lists, as in the file
    different = []
    for name, value in settings.items():
        if name in saved:
            different += describe_difference(name, saved[name], value)
    if different:
        raise ValueError(f"{path} is of a run with other settings: {first_few(different)}. To go "
                         "on with it, give the flags that it had. For other settings start a run "
                         "with another --out; it can begin with the model that this run has "
                         "saved, if there is one yet: distill.py --student, finetune.py --model")


# The values of these settings are hashes, which would tell a user nothing.
HASHED_SETTINGS = ("corpus", "tokenizer", "teacher", "student", "encoder", "head", "training_set",
                   "dev_set")


def describe_difference(name, was, now):
    """Say how a setting differs -> a list of texts; the list is empty if the setting is the same.

    If both values are dicts, such as the weights of the losses, there is one text for each item
    that differs. An item that only one of these dicts has is a difference, too: it counts as None
    in the other.
    """
    if was == now:
        return []
    if isinstance(was, dict) and isinstance(now, dict):
        texts = []
        for item in sorted(was.keys() | now.keys()):
            texts += describe_difference(f"{name}.{item}", was.get(item), now.get(item))
        return texts
    if name in HASHED_SETTINGS and was is not None and now is not None:
        return [f"{name} has other contents now"]
    return [f"{name} was {was!r:.60}, now it is {now!r:.60}"]


# ---- The folder of a run ----------------------------------------------------------------

# Each run writes this file: its script, its settings, its command, and the versions of Python and
# torch.
RUN_FILE = "run.json"
# finetune.py makes a subfolder with a name like this for each mode, learning rate and seed.
TUNING_FOLDER = "*-lr*-seed*"
TOKENIZER_FILES = ["tokenizer.json", "vocab.txt", "tokenizer_config.json", "added_tokens.json",
                   "special_tokens_map.json"]
# train() of distill.py writes these files: in distill.py into --out, in finetune.py into the
# subfolders.
TRAINING_FILES = ["training.safetensors", "log.jsonl"]
# Besides run.json, runs write these files into their folders. --overwrite removes them, their
# temporary files, and no others.
WRITTEN_BY_RUNS = [
    "config.json", "model.safetensors", *TRAINING_FILES,
    *TOKENIZER_FILES,
    "head.safetensors", "task.json", "results.json",
    "dev.jsonl", "dev_*matched.jsonl", "test.jsonl",
    *[f"{TUNING_FOLDER}/{name}" for name in TRAINING_FILES],
    "CoLA.tsv", "SST-2.tsv", "MRPC.tsv", "QQP.tsv", "STS-B.tsv", "MNLI-m.tsv", "MNLI-mm.tsv",
    "QNLI.tsv", "RTE.tsv", "WNLI.tsv",
]


@contextmanager
def run_folder(out, script, settings, inputs, resume=False, overwrite=False):
    """Lock and check the folder `out`. In the with block only this run of `script` uses it. The
    caller calls claim_folder in this block. Until then no file of an earlier run changes.

    settings: a dict of what the run must have in common with one that it resumes
    inputs: the folders and files that the run reads; an item that is None is ignored. `out` must
        not be one of these folders, and none of these files may lie directly in it.
    resume, overwrite: see check_may_resume and check_may_start
    ValueError says what is wrong

    The lock is on the folder's run.json, which is made if it is missing. If the process ends or is
    killed, the lock ends, too. At the end of the with block run.json is removed if it is empty or
    the only file. Then the folder is removed if it is empty, even if it was there before. So a run
    that ends before it has written a file leaves no folder.
    """
    if os.path.lexists(out) and not os.path.isdir(out):      # also a link that leads to nothing
        raise ValueError(f"--out {out}: this is a file; give the name of a folder")
    check_not_read_from(out, inputs)
    os.makedirs(out, exist_ok=True)
    run_path = os.path.join(out, RUN_FILE)
    # The mode "a" makes the file if it is missing. If there is one, it stays as it is.
    with open(run_path, "a", encoding="utf-8") as run_file:
        lock(run_file)
        # read_run raises a ValueError if run.json is not ours. It is called before the try, because
        # the finally clause would remove a run.json that is the only file.
        earlier_run = read_run(out)
        try:
            if resume:
                check_may_resume(out, earlier_run, script, settings)
            else:
                check_may_start(out, earlier_run, overwrite)
            yield
        finally:
            # What cannot be removed stays: a folder with files, or, on Windows, an open file.
            with suppress(OSError):
                is_unclaimed = os.path.getsize(run_path) == 0
                has_only_run_file = os.listdir(out) == [RUN_FILE]
                if is_unclaimed or has_only_run_file:
                    os.remove(run_path)
                os.rmdir(out)


def check_not_read_from(out, inputs):
    """Raise ValueError if the folder `out` is one that is read from. inputs: see run_folder"""
    for path in inputs:
        if path is None:
            continue
        path = os.path.realpath(path)                    # a link is replaced by its target
        if os.path.isfile(path):
            path = os.path.dirname(path)
        if path == os.path.realpath(out):
            raise ValueError(f"--out {out}: this folder is read from; choose another one")


def check_may_resume(out, earlier_run, script, settings):
    """Raise ValueError unless the folder `out` has a run of `script` with the same settings.

    But if there are neither files of a run nor subfolders, a new run starts. So a scheduler may
    give --resume at the first start, too. Other files, such as the scheduler's log, may be in the
    folder. earlier_run: what read_run(out) has returned
    """
    folders = [entry.name for entry in os.scandir(out) if entry.is_dir()]
    if not files_of_run(out) and not folders:
        print(f"--resume: there is no run in {out} yet, so this one starts at step 1")
        return
    if earlier_run.get("script") != script:
        raise ValueError(f"--resume: there is no run of {script} in {out}")
    check_settings(os.path.join(out, RUN_FILE), earlier_run["settings"], settings)


def check_may_start(out, earlier_run, overwrite):
    """Raise ValueError if a new run may not write into the folder `out`.

    --overwrite needs a run of any script, or none of the files in WRITTEN_BY_RUNS. A start without
    --overwrite needs a folder that holds nothing but run.json. earlier_run: what read_run(out) has
    returned
    """
    old_files = files_of_run(out)                        # run.json is not among them
    # Without a run.json of ours the files may be somebody else's.
    if overwrite and old_files and earlier_run == {}:
        raise ValueError(f"--overwrite: {out} is not the folder of a run, but it holds "
                         f"{first_few(old_files)}")
    if not overwrite and os.listdir(out) != [RUN_FILE]:
        raise ValueError(f"--out {out} is not empty: --resume goes on with a run that is in it, "
                         "--overwrite starts anew and loses that; or choose another folder")


def claim_folder(out, script, settings, resume):
    """Prepare the folder `out` for a run. The caller has locked it with run_folder.

    If a run is resumed and has left files, nothing changes. Otherwise the files of an earlier run
    are removed, and the settings of the new run are written into run.json. All other files stay.
    run.json also has the command and the versions, for its readers.
    """
    run_path = os.path.join(out, RUN_FILE)
    old_files = files_of_run(out)
    if resume and old_files:
        # run_folder has checked some of the settings. Since then the caller has read the data and
        # knows all of them.
        check_settings(run_path, read_run(out)["settings"], settings)
        return
    for path in old_files:
        os.remove(path)
    for folder in glob.glob(TUNING_FOLDER, root_dir=out):
        with suppress(OSError):                          # rmdir removes only an empty folder
            os.rmdir(os.path.join(out, folder))
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    run = {"script": script, "settings": settings, "command": sys.argv, "versions": versions}
    # The lock belongs to the open file and not to its name. A new file of this name, as write_json
    # makes one, would not be locked. So the old file is kept, and the text is written into it.
    # A name in the command may be no UTF-8. Its odd bytes are replaced by question marks.
    with (naming_file(run_path),
          open(run_path, "w", encoding="utf-8", errors="replace") as run_file):
        run_file.write(json.dumps(run, indent=1, ensure_ascii=False))
        run_file.flush()
        os.fsync(run_file.fileno())                      # from now on a power cut cannot lose it


def read_run(out):
    """Read the run.json in the folder `out` -> dict; {} if the file is missing or empty.

    run.json is empty if a run ended, or the power failed, before claim_folder had written it.
    ValueError if it is no run.json of ours, which has a script and settings.
    """
    path = os.path.join(out, RUN_FILE)
    if not os.path.isfile(path) or os.path.getsize(path) == 0:
        return {}
    run = read_json(path)
    if run.get("script") is None or not isinstance(run.get("settings"), dict):
        raise ValueError(f"{path}: it does not describe a run, for it lacks script or settings")
    return run


def files_of_run(out):
    """List the files in the folder `out` that match WRITTEN_BY_RUNS. Their temporary files (.tmp),
    which a killed run may have left, are listed, too.

    A subfolder with a run.json of its own belongs to another run, so its files are left out.
    """
    paths = []
    for pattern in WRITTEN_BY_RUNS:
        names = glob.glob(pattern, root_dir=out) + glob.glob(f"{pattern}.tmp", root_dir=out)
        for name in names:
            subfolder = os.path.dirname(name)            # "" for a file in `out` itself
            if subfolder == "" or not os.path.exists(os.path.join(out, subfolder, RUN_FILE)):
                paths.append(os.path.join(out, name))
    return paths


def lock(file):
    """Lock an open file until it is closed or its process dies. ValueError if the file is locked
    already, usually by another process.

    Windows and some network disks have no locks. There this function does nothing.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        folder = os.path.dirname(file.name)
        raise ValueError(f"--out {folder}: another run is writing into it") from error
    except OSError:
        pass                                             # this disk has no locks


# ---- Files in general -------------------------------------------------------------------

@contextmanager
def expecting(what, kind):
    """Turn an Exception in the with block into a ValueError that says "{what}: not {kind}: ...".

    what: usually the path of a file
    kind: what the file should be

    Two kinds of errors do not become a ValueError. An OSError that already names a file is passed
    on unchanged. An error that says that memory ran out becomes a MemoryError with the text `what`.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        if is_about_memory(error):
            raise MemoryError(what) from error
        reason = str(error)
        if not isinstance(error, ValueError):
            reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{what}: not {kind}: {one_line(reason):.500}") from error


@contextmanager
def naming_file(path):
    """Add the file's name to an OSError that names no file, such as the error of a full disk. In
    the with block every OSError without a name gets this one, even if it is about another file."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.strerror is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def replace_file(path, shared=False):
    """Open a new file for writing. When the with block ends, it takes the place of `path`.

    Until then the new file has a temporary name. At the end it is flushed to the disk and renamed.
    So `path` is always the whole old file or the whole new one, whatever happens.
    shared: True if several processes may write the same path at once; then each uses a temporary
        name of its own, and afterwards the files that killed processes have left are removed
    """
    temporary = f"{path}.tmp"
    if shared:
        temporary = f"{path}.{os.urandom(8).hex()}.tmp"
    try:
        with naming_file(path):
            # A killed process may have left this file. If it is a link, its target stays.
            with suppress(FileNotFoundError):
                os.remove(temporary)
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        if os.path.isfile(temporary):                    # an error came before os.replace
            os.remove(temporary)
    if shared:
        remove_abandoned(path)


def remove_abandoned(path):
    """Remove the temporary files of processes that were killed while they wrote `path`: those that
    have not changed for ten minutes. A process that is writing changes its file every few seconds.
    """
    # replace_file puts 16 hexadecimal digits into the name.
    pattern = glob.escape(str(path)) + "." + "[0-9a-f]" * 16 + ".tmp"
    for temporary in glob.glob(pattern):
        # The file may be gone, because its process has just finished. Or it is another user's.
        with suppress(FileNotFoundError, PermissionError):
            age = time.time() - os.path.getmtime(temporary)                   # seconds
            if age > 600:
                os.remove(temporary)


def write_json(path, value, shared=False):
    """Write a value as JSON. An older file is replaced. shared: see replace_file"""
    with replace_file(path, shared) as file:
        file.write(json.dumps(value, indent=1).encode())


LARGEST_TEXT = 1_000_000_000        # bytes; vocabularies and configs are far smaller


def read_text(path):
    """Read a text file in UTF-8, with or without a byte order mark."""
    check_readable(path)
    with expecting(path, "text in UTF-8"), open(path, encoding="utf-8-sig") as file:
        return file.read()


def read_json(path, kind="a JSON object"):
    """Read a file that is one JSON object -> dict. ValueError and OSError name the file.

    kind: what the file should be, for messages
    """
    text = read_text(path)
    with expecting(path, kind):
        return parse_json_object(text)


def check_readable(path):
    """Raise ValueError if a path is a device, a pipe or a folder, a file of over 1 GB, or a pointer
    of Git LFS."""
    size = os.path.getsize(path)                         # an OSError if there is no such file
    if not os.path.isfile(path):
        raise ValueError(f"{path} is not a regular file")
    if size > LARGEST_TEXT:
        raise ValueError(f"{path}: a file of {size:,} bytes is too large here")
    with expecting(path, "the file itself"):
        check_no_lfs_pointer(path)


# Git LFS replaces a large file by a small text file, which begins like this.
LFS_POINTER = b"version https://git-lfs"


def check_no_lfs_pointer(path):
    """Raise ValueError if a file is a pointer of Git LFS. A folder that was cloned without Git LFS
    has pointers in place of its large files. The caller adds the path: see expecting."""
    with open(path, "rb") as file:
        begin = file.read(len(LFS_POINTER))
    if begin == LFS_POINTER:
        raise ValueError("it is a pointer of Git LFS to the file: git lfs pull downloads it")


def parse_json_object(text):
    """Parse a text that is one JSON object -> dict. ValueError if it is anything else, or if a
    string in it has a surrogate, which is half a character."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if "\n" in text:
            raise                                        # this error names the line and the column
        # A text without line ends is often one line of a file, so its "line 1" would mislead.
        raise ValueError(f"{error.msg}, at character {error.pos + 1}") from error
    if not isinstance(value, dict):
        raise ValueError(f"it is a {type(value).__name__}")
    # json.loads joins two escapes that stand for one character, such as \ud83d\ude00. An escape
    # without its partner becomes half a character, a surrogate, which UTF-8 cannot express.
    if "\\ud" in text.lower():
        text_of_value = json.dumps(value, ensure_ascii=False)
        half = re.search("[\ud800-\udfff]", text_of_value)
        if half is not None:
            raise ValueError(f"it has {ascii(half[0])}, which is half a character, perhaps of an "
                             "emoji that was cut in two; UTF-8 does not have it: remove it")
    return value


# ---- The Hugging Face hub ---------------------------------------------------------------

# fetch() downloads each of these files if the hub has it for the model.
SMALL_FILES = ["config.json", *TOKENIZER_FILES]
# fetch() downloads only the first of these files that the hub has. If it is an index, the weights
# are in several other files. They match SHARDS and are downloaded, too.
WEIGHT_FILES = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
SHARDS = "model-*.safetensors"


def fetch(name, weights=True):
    """Return the folder with a model's files. If `name` is a folder, it is returned. Otherwise the
    model of this name is downloaded from the Hugging Face hub.

    weights: False fetches only the config and the tokenizer
    ValueError if the model is not found. Without a network it must have been downloaded earlier.
    """
    if name == "":
        raise ValueError("a name is empty: give a folder or a Hugging Face name")
    if os.path.isdir(name):
        return name
    if os.path.isfile(name):
        raise ValueError(f"{name}: this is a file; give the folder that it is in")
    # This is imported here, because the import is slow and most runs do not need it.
    from huggingface_hub import snapshot_download
    try:
        folder = snapshot_download(name, allow_patterns=SMALL_FILES)
        if not weights:
            return folder
        for weight_file in WEIGHT_FILES:
            snapshot_download(name, allow_patterns=weight_file)               # to the same folder
            if os.path.exists(os.path.join(folder, weight_file)):
                if weight_file.endswith(".index.json"):
                    snapshot_download(name, allow_patterns=SHARDS)
                return folder
        raise ValueError(f"no {' or '.join(WEIGHT_FILES)} was found; without a network only files "
                         "that were downloaded earlier can be found")
    except Exception as error:      # huggingface_hub, its HTTP library or the lines above raise it
        raise ValueError(f"{name}: there is no such folder, and it could not be downloaded from "
                         f"the Hugging Face hub: {one_line(error)}") from error
