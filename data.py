"""Make masked batches from text. Further down: tokenizers, token files and corpora.

MaskedBatches cuts the token numbers of a corpus into sequences, and mask_tokens
masks 15 % of their tokens. What is below the banner "From here on: plumbing"
makes token numbers of text. This file is a command, too: see USAGE.
"""
USAGE = """Tokenise a corpus once (the first command), or learn a vocabulary (the second).

    python data.py --corpus wiki/ --tokenizer bert-base-uncased --out wiki.bin
    python data.py --corpus wiki/ --train-tokenizer 8192 --out my-tokenizer

A corpus is any mix of files and folders of .txt (a blank line between
documents), .jsonl (one JSON object a line) and .csv (the first row names the
columns). Each may be compressed as .gz, .bz2 or .xz. For .jsonl and .csv,
--text names the field that holds the text. A corpus is read once, a piece at a
time (a row of a .jsonl or a .csv must fit into memory), and written as a token
file: the token numbers of all documents end to end with [SEP] after each, first
the documents to train on, then those held out for validation. The token file is
mapped into memory from then on. A JSON file beside it says what it was made from.
"""
if __name__ == "__main__":
    # Ctrl-C is handled before the imports below, because they take seconds: see command.py.
    from command import end_at_interrupt
    end_at_interrupt()

import argparse
import bz2
import codecs
import csv
import gzip
import hashlib
import importlib.metadata
import inspect
import io
import json
import lzma
import math
import os
import random
import re
import shutil
import sys
import sysconfig
import tempfile
import time
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
import tokenizers
from tqdm import tqdm

from checkpoint import (TOKENIZER_FILES, check_no_lfs_pointer, expecting, fetch, read_json,
                        read_text, remove_abandoned, replace_file, write_json)
from command import CommandParser, first_few, path_name, printable, run_command, warn


# ---- Masking and batches ----------------------------------------------------------------

def num_to_mask(T):
    """Return how many tokens of a sequence of T are masked: 15 % of the T - 2 tokens between [CLS]
    and [SEP], rounded (a half to the even number: 4.5 to 4), but at least one."""
    return max(1, round(0.15 * (T - 2)))


def mask_tokens(ids, tokenizer, rng):
    """Mask sequences as BERT does (Devlin et al. 2019): about 15 % of each sequence's tokens are
    chosen, never a special one. Of the chosen tokens 80 % become [MASK], 10 % become a random
    token that is not special, and 10 % stay. All chosen tokens are called masked, also those that
    stay. The special tokens are [PAD], [UNK], [CLS], [SEP] and [MASK].

    Held-out text is masked by this function, too. Accuracies can be compared only if they were
    measured with the same masking.

    ids (B, T): must be without padding, because the number of chosen tokens depends on T
    rng: a numpy Generator
    Returns the masked ids (B, T), the positions (M,) of the chosen tokens in the flattened ids, in
    increasing order, and the labels (M,), the true tokens at these positions.
    """
    positions = choose_positions(ids, tokenizer, rng)    # (M,)
    flat_ids = ids.flatten()                             # (B * T,), a copy, not masked yet
    labels = flat_ids[positions]                         # (M,), a copy, too
    # These are lists, because Python loops over lists faster than over arrays.
    draws = rng.random(len(positions)).tolist()          # a number in [0, 1) for each position
    random_tokens = rng.choice(tokenizer.ordinary_ids, len(positions)).tolist()
    for position, draw, random_token in zip(positions.tolist(), draws, random_tokens):
        if draw < 0.8:
            flat_ids[position] = tokenizer.mask_id       # 80 %: [MASK] takes its place
        elif draw < 0.9:
            flat_ids[position] = random_token            # 10 %: a random one takes its place
        else:
            pass                                         # 10 %: it stays, and must be predicted
    masked_ids = flat_ids.reshape(ids.shape)             # (B, T)
    return masked_ids, positions, labels


def choose_positions(ids, tokenizer, rng):
    """Choose the tokens of ids (B, T) to mask -> (M,): see mask_tokens."""
    B, T = ids.shape
    N = num_to_mask(T)                                   # tokens to choose in each sequence
    is_special = np.isin(ids, tokenizer.special_ids)     # (B, T)
    # Each token draws a random number in [0, 1). In each sequence the N tokens with the smallest
    # numbers are chosen. Special tokens get 2.0, so that they come last.
    random_numbers = rng.random((B, T))
    random_numbers[is_special] = 2.0
    smallest_first = np.argsort(random_numbers, axis=1)  # (B, T): indices into the sequence
    is_chosen = np.zeros((B, T), bool)
    np.put_along_axis(is_chosen, smallest_first[:, :N], True, axis=1)
    # If a sequence has fewer than N ordinary tokens, special ones were chosen, too. They are taken
    # out again here. Usually there is no such sequence, and M is B * N. A batch with another M does
    # without CUDA graphs (choose_losses_function of distill.py).
    is_chosen[is_special] = False
    return np.flatnonzero(is_chosen)                     # (M,): indices into the flattened ids


# A generator of random numbers is seeded with [seed, purpose, step or epoch]. These are the
# purposes. So masking, for example, draws other numbers than the order of the sequences does, and
# what is drawn for a step does not depend on the steps before it.
RNG_ORDERS = 1                      # the order of the sequences in an epoch
RNG_MASKING = 2                     # which tokens of a step are masked, and by what
RNG_DEPTHS = 3                      # the depths of the elastic loss in a step; distill.py alone
RNG_TASK_ORDERS = 3                 # the order of the Features in an epoch; finetune.py alone. It
                                    # may be equal to RNG_DEPTHS: no program draws both


class MaskedBatches:
    """Batches of masked sequences. A step's batch does not depend on the batches before it.

    So a resumed run needs to restore nothing here. A sequence is [CLS], T - 2 tokens, [SEP]; there
    is no padding. Each epoch has each sequence once and its own order of them. Tokens at the end
    that do not fill a sequence are never used. ValueError if check_tokens refuses the tokens.

    tokens: an array, or a list, of the token numbers of all documents, one after the other, each
        with a [SEP] at its end
    """

    def __init__(self, tokens, tokenizer, T, batch_size, seed=0):
        self.tokens = np.asarray(tokens)                 # (number of tokens,)
        self.tokenizer = tokenizer
        self.T = T
        self.batch_size = batch_size
        self.seed = seed
        check_tokens(self.tokens, T)
        self.count = len(self.tokens) // (T - 2)         # sequences in an epoch
        # The epoch used last and its order. Both are set in one assignment, so that they always
        # match, even after an interrupted call or in another thread.
        self.kept_order = (None, None)

    def batch(self, step):
        """Return the numpy arrays of a step: masked ids (B, T), positions (M,) and labels (M,). See
        mask_tokens."""
        # Imagine the sequences of all epochs, one after another, as one long list. Each batch takes
        # the next batch_size of them. So it may begin in one epoch and end in the next.
        first = step * self.batch_size                   # an index into this list
        sequence_numbers = []
        for index in range(first, first + self.batch_size):
            epoch, index_in_epoch = divmod(index, self.count)
            order = self.order_of_epoch(epoch)           # (count,): sequence numbers, shuffled
            sequence_numbers.append(order[index_in_epoch])
        ids = self.sequences(sequence_numbers)           # (B, T), not masked yet
        rng = np.random.default_rng([self.seed, RNG_MASKING, step])
        return mask_tokens(ids, self.tokenizer, rng)

    def order_of_epoch(self, epoch):
        """Return the order of the sequences in an epoch. The order last used is kept."""
        kept_epoch, order = self.kept_order
        if epoch != kept_epoch:
            rng = np.random.default_rng([self.seed, RNG_ORDERS, epoch])
            order = rng.permutation(self.count)
            self.kept_order = (epoch, order)
        return order

    def sequences(self, numbers):
        """Return the unmasked ids (B, T) of the sequences with these B numbers. ValueError if they
        have a token that the tokenizer does not have; batch() raises it, too."""
        num_inside = self.T - 2                          # tokens between [CLS] and [SEP]
        ids = np.empty((len(numbers), self.T), np.int64)
        for row, number in enumerate(numbers):
            # int() is needed because on some systems numpy's integers have only 32 bits.
            begin = int(number) * num_inside             # sequences follow one another
            ids[row, 0] = self.tokenizer.cls_id
            ids[row, 1:-1] = self.tokens[begin:begin + num_inside]
            ids[row, -1] = self.tokenizer.sep_id
        for token in (ids.min(), ids.max()):
            if not 0 <= token < self.tokenizer.vocab_size:
                raise ValueError(f"token {token} is in the corpus, but those of the tokenizer are "
                                 f"0 to {self.tokenizer.vocab_size - 1}: another tokenizer made "
                                 "the tokens")
        return ids


# ---- From here on: plumbing -------------------------------------------------------------

def check_tokens(tokens, T):
    """Raise ValueError if tokens are not one array of whole numbers, if they are too few for a
    sequence of T, or if T is below 3."""
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":                     # whole numbers
        raise ValueError("tokens must be one array of token numbers, but its shape is "
                         f"{tokens.shape} and its dtype {tokens.dtype}")
    if T < 3:
        raise ValueError(f"a sequence of {T} has no room for a token beside [CLS] and [SEP]")
    if len(tokens) < T - 2:
        raise ValueError(f"{len(tokens)} tokens are too few for one sequence of {T} with its [CLS] "
                         "and [SEP]; use more text or a smaller length")


# ---- Tokenizers -------------------------------------------------------------------------

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# What Tokenizer.save and train_tokenizer write into a tokenizer_config.json, for transformers.
WORDPIECE_CONFIG = {"tokenizer_class": "BertTokenizer"}
LARGEST_VOCAB_SIZE = 2**24


class Tokenizer:
    """A BERT tokenizer, read from the tokenizer.json or the vocab.txt in a folder.

    Its tokenizer.json or its tokenizer_config.json says whether it is cased. If neither does, as in
    BioBERT and SciBERT, the vocabulary decides: see is_uncased. ValueError names a file that is
    not a tokenizer.
    """

    def __init__(self, path):
        self.path = path
        self.backend, file_path = read_backend(path)
        self.contents = read_tokenizer_files(path)       # for save(), because the folder may change
        id_of_token = self.backend.get_vocab()
        missing = [token for token in SPECIAL_TOKENS if token not in id_of_token]
        if missing:
            raise ValueError(f"{file_path}: it has no {' '.join(missing)}, which each tokenizer of "
                             "a BERT has; those of RoBERTa, XLM-R and ALBERT are not read here")
        self.pad_id = id_of_token["[PAD]"]
        self.unk_id = id_of_token["[UNK]"]
        self.cls_id = id_of_token["[CLS]"]
        self.sep_id = id_of_token["[SEP]"]
        self.mask_id = id_of_token["[MASK]"]
        self.special_ids = np.array([id_of_token[token] for token in SPECIAL_TOKENS])
        self.ordinary_ids = np.setdiff1d(list(id_of_token.values()), self.special_ids)
        self.vocab_size = max(id_of_token.values()) + 1
        # If a token had a huge number, to_str() below would use gigabytes, even for few tokens.
        if self.vocab_size > LARGEST_VOCAB_SIZE:
            raise ValueError(f"{file_path}: {self.vocab_size - 1} is too large for a token's "
                             "number")
        self.digest = hashlib.sha256(self.backend.to_str().encode()).hexdigest()[:16]

    def encode(self, texts):
        """Turn a list of texts into a list of lists of token numbers. No special token is added."""
        if isinstance(texts, str):
            raise ValueError(f"{texts!r:.60} is one text, but encode() takes a list of texts")
        check_are_texts(texts)
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def __call__(self, text):
        """Turn one text into a list of token numbers that begins with [CLS] and ends with [SEP]."""
        return [self.cls_id] + self.encode([text])[0] + [self.sep_id]

    def decode(self, ids):
        """Turn a list of token numbers into text; special tokens are left out."""
        return self.backend.decode(ids)

    def save(self, path):
        """Write the tokenizer's files into the folder path, which is made if it does not exist. The
        files of a tokenizer that was there before are removed."""
        os.makedirs(path, exist_ok=True)
        contents = dict(self.contents)
        config = WORDPIECE_CONFIG                        # if there is no tokenizer_config.json
        if "tokenizer_config.json" in contents:
            config = json.loads(contents["tokenizer_config.json"])
        # lowercase is None if the tokenizer does not normalise as BERT does.
        lowercase = getattr(self.backend.normalizer, "lowercase", None)
        # If do_lower_case is missing, transformers lower-cases. So it is written here.
        if config.get("do_lower_case") is None and lowercase is not None:
            config = config | {"do_lower_case": lowercase}
            contents["tokenizer_config.json"] = json.dumps(config, indent=1).encode()
        for name in TOKENIZER_FILES:
            target = os.path.join(path, name)
            if name in contents:
                with replace_file(target) as file:
                    file.write(contents[name])
            elif os.path.isfile(target):
                os.remove(target)


def check_are_texts(texts):
    """Raise ValueError if one of these is not a text. The tokenizers library would take a tuple of
    two texts for a pair, and join them."""
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{text!r:.60} is not a text")


def read_backend(path):
    """Read a folder's tokenizer -> the tokenizers library's Tokenizer and the path of its file."""
    file_path = os.path.join(path, "tokenizer.json")
    if os.path.isfile(file_path):
        with expecting(file_path, "a tokenizer"):
            check_no_lfs_pointer(file_path)
            backend = tokenizers.Tokenizer.from_file(file_path)
            backend.no_padding()
            backend.no_truncation()
            check_unknown_token(backend)
    else:
        file_path = os.path.join(path, "vocab.txt")
        if not os.path.isfile(file_path):
            raise ValueError(f"{path}: it has no tokenizer.json and no vocab.txt")
        backend = read_wordpiece(file_path)
    check_added_tokens(backend, path)
    obey_config(backend, path)
    return backend, file_path


def check_unknown_token(backend):
    """Raise an error if a tokenizer of the tokenizers library has no token for unknown words."""
    # Few tokenizers know this long word and this rare Cyrillic letter. If the unk_token is not in
    # the vocabulary, encode() raises an error at either of them.
    backend.encode("a" * 1000)
    tokens_of_rare_letter = backend.encode("\ua66e", add_special_tokens=False).ids
    if not tokens_of_rare_letter:                        # there is no unk_token at all
        raise ValueError("words that it does not know vanish: its model has no unk_token")


def read_wordpiece(path):
    """Make the tokenizer of a vocab.txt. It lower-cases if the vocabulary is_uncased."""
    tokens = read_text(path).removesuffix("\n").split("\n")
    repeated = [repr(token) for token, count in Counter(tokens).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: each token must stand in one line, but these stand in several: "
                         f"{first_few(repeated)}. transformers uses the last line of each: give "
                         "the lines before it other names, such as [repeated1]")
    return make_wordpiece(tokens, is_uncased(tokens))


def is_uncased(tokens):
    """Guess whether a vocabulary is uncased, that is, whether its tokenizer lower-cases and removes
    accents.

    It is uncased if no token has a capital. It is also uncased if lower-casing and removing accents
    would change at most one token in 20, because some such vocabularies have a few capitals:
    Google's Chinese one has <S> and <T>, and in SciBERT's uncased one a token in 50 would be
    changed. In BERT's cased one nearly a token in three would be. Tokens in brackets, such as
    [CLS], do not count.
    """
    ordinary_tokens = [token for token in tokens if not re.fullmatch(r"\[.*\]", token)]
    has_capitals = any(token != token.lower() for token in ordinary_tokens)
    # With handle_chinese_chars=True there would be spaces around each Chinese character.
    normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True, handle_chinese_chars=False)
    changed = [token for token in ordinary_tokens if normalizer.normalize_str(token) != token]
    return not has_capitals or len(changed) <= len(ordinary_tokens) / 20


def make_wordpiece(tokens, lowercase):
    """Make a BERT tokenizer whose token number i is tokens[i]. As in BERT, each Chinese character
    in a text is a word, and a tokenizer that lower-cases also removes accents.

    The tokenizers library splits a text into words and punctuation characters, and each word into
    tokens. It takes the longest token with which the word begins, then the longest one for the
    beginning of the rest, and so on. The later tokens have ## before them: "playing" may become
    "play" and "##ing". If no token fits at some place, the whole word becomes [UNK].
    """
    id_of_token = {token: i for i, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(id_of_token, unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece()
    backend.add_special_tokens([token for token in SPECIAL_TOKENS if token in id_of_token])
    return backend


def check_added_tokens(backend, path):
    """Raise ValueError if a folder names added tokens that the backend does not know as such.

    transformers finds an added token in a text before it splits the text into words. For example,
    [unused1] may mark the beginning of a name. This program would split it at its brackets, even if
    it is in the vocabulary.
    """
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    unknown = sorted(added_tokens_of_files(path) - known - set(SPECIAL_TOKENS))
    if unknown:
        raise ValueError(f"{path}: {first_few(unknown)}: transformers keeps these tokens whole, "
                         "but here they would be split; give a tokenizer.json with all added "
                         "tokens, as transformers writes it")


def added_tokens_of_files(path):
    """Collect the added tokens that are named in the files of a folder -> a set."""
    tokens = set()
    added_path = os.path.join(path, "added_tokens.json")
    if os.path.isfile(added_path):
        tokens.update(read_json(added_path))             # {token: its number}
    # Older versions of transformers name some tokens only in special_tokens_map.json.
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        config_path = os.path.join(path, name)
        if os.path.isfile(config_path):
            config = read_json(config_path)
            with expecting(config_path, "the config of a tokenizer"):
                tokens.update(added_tokens_of_config(config))
    return tokens


def added_tokens_of_config(config):
    """List the added tokens that a tokenizer_config.json or a special_tokens_map.json names."""
    entries = []                                         # each is a token or {"content": token}
    entry_of_number = config.get("added_tokens_decoder")
    if entry_of_number is not None:
        entries += entry_of_number.values()
    special_tokens = config.get("additional_special_tokens")
    if special_tokens is not None:
        entries += special_tokens
    tokens = []
    for entry in entries:
        token = entry
        if isinstance(entry, dict):
            token = entry["content"]
        if not isinstance(token, str):
            raise ValueError(f"the added token {token!r:.60} is not a text")
        tokens.append(token)
    return tokens


# Options of a tokenizer_config.json, and their names in BertNormalizer of the tokenizers library.
NORMALIZER_OPTIONS = {"do_lower_case": "lowercase", "strip_accents": "strip_accents",
                      "tokenize_chinese_chars": "handle_chinese_chars"}


def obey_config(backend, path):
    """Make a tokenizer normalise texts as the tokenizer_config.json in the folder path says.

    An option that is missing there changes nothing. If a tokenizer.json says something else, the
    config counts, as in transformers. ValueError if an option is neither true nor false nor null,
    or if the tokenizer is for Japanese.
    """
    config_path = os.path.join(path, "tokenizer_config.json")
    if not os.path.isfile(config_path):
        return
    config = read_json(config_path)
    # The tokenizer of a Japanese BERT, BertJapaneseTokenizer, has this option.
    if "word_tokenizer_type" in config:
        raise ValueError(f"{config_path}: word_tokenizer_type is "
                         f"{config['word_tokenizer_type']!r:.60}: transformers splits a Japanese "
                         "text into words with a program such as MeCab, but words are split only "
                         "at spaces and punctuation here")
    # Two classes of transformers are for any kind of tokenizer, and they ignore the options.
    if config.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        return
    if not isinstance(backend.normalizer, tokenizers.normalizers.BertNormalizer):
        return
    for option, attribute in NORMALIZER_OPTIONS.items():
        value = config.get(option)
        if value is None:
            continue
        if not isinstance(value, bool):
            raise ValueError(f"{config_path}: {option} is {value!r:.60}, not true or false")
        setattr(backend.normalizer, attribute, value)


def read_tokenizer_files(path):
    """Read the tokenizer's files in a folder -> {name: bytes}."""
    contents = {}
    for name in TOKENIZER_FILES:
        file_path = os.path.join(path, name)
        if os.path.isfile(file_path):
            with open(file_path, "rb") as file:
                contents[name] = file.read()
    return contents


# ---- Learning a vocabulary --------------------------------------------------------------

def train_tokenizer(corpus, size, out, lowercase=True, text_column="text"):
    """Learn a vocabulary of `size` tokens, among them the special ones, and write it to `out`.

    The vocabulary is smaller if the corpus does not yield enough tokens. Every character becomes a
    token. A character that continues a word becomes a token with ##, too. If these and the special
    tokens are more than `size`, the vocabulary is larger. Returns the Tokenizer. ValueError if
    `size` is out of range, if the corpus has no text, or if `out` has another tokenizer or is in
    the corpus.
    """
    if not 100 <= size <= 2**20:
        raise ValueError(f"--train-tokenizer {size}: the size must be from 100 to {2**20} tokens")
    config = WORDPIECE_CONFIG | {"do_lower_case": lowercase}
    check_vocabulary_folder(out, config)
    corpus = list_of_paths(corpus)
    check_out_is_outside(out, corpus)
    files = corpus_files(corpus)
    os.makedirs(out, exist_ok=True)
    # Learning may take hours. So the file is opened first: if it cannot be written, the user is
    # told at once.
    with replace_file(os.path.join(out, "vocab.txt")) as file:
        tokens = learn_tokens(files, size, lowercase, text_column)
        if not tokens:
            raise ValueError(f"{first_few(corpus)}: there is no text in the corpus")
        for token in SPECIAL_TOKENS + tokens:
            file.write(f"{token}\n".encode())
        # vocab.txt gets its name last, at the end of the with block.
        write_json(os.path.join(out, "tokenizer_config.json"), config)
    return Tokenizer(out)


def learn_tokens(files, size, lowercase, text_column):
    """Learn the tokens of a vocabulary from the files of a corpus -> a list, sorted, without the
    special tokens."""
    # This tokenizer has an empty vocabulary, which the training fills. The training normalises
    # texts and splits them into words as this tokenizer does.
    backend = make_wordpiece([], lowercase)
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=SPECIAL_TOKENS, show_progress=False)
    lines = (line for line in read_corpus(files, text_column) if line)
    backend.train_from_iterator(lines, trainer)
    # The library's order varies from run to run, so the tokens are sorted. (At a tie it may also
    # choose another token.)
    return sorted(set(backend.get_vocab()) - set(SPECIAL_TOKENS))


def check_vocabulary_folder(out, config):
    """Raise ValueError if the folder `out` has files of another tokenizer.

    config: a dict, which will be written into tokenizer_config.json in `out`
    """
    for name in TOKENIZER_FILES:
        if name != "tokenizer_config.json" and os.path.exists(os.path.join(out, name)):
            raise ValueError(f"{out}: it has a {name} already; choose another --out")
    config_path = os.path.join(out, "tokenizer_config.json")
    # An equal file is allowed: a run that was stopped after it had written one may be repeated.
    if os.path.exists(config_path) and read_json(config_path) != config:
        raise ValueError(f"{out}: it has another tokenizer_config.json already; choose another "
                         "--out")


def check_out_is_outside(out, corpus):
    """Raise ValueError if the folder `out` is one of the folders in the list `corpus`, or lies in
    one of them."""
    real_out = PurePath(os.path.realpath(out))
    for path in corpus:
        if os.path.isdir(path) and real_out.is_relative_to(os.path.realpath(path)):
            raise ValueError(f"--out {out} is in the corpus {path}, so its files would be taken "
                             "for text; choose another one")


# ---- Token files ------------------------------------------------------------------------

def home_folder():
    """Return the home folder. If there is none, as in some containers, return a folder of this user
    among the temporary files."""
    home = os.path.expanduser("~")
    if home != "~":
        return home
    user_number = os.getuid() if hasattr(os, "getuid") else 0       # Windows has no getuid
    return os.path.join(tempfile.gettempdir(), f"minialbert-{user_number}")


CACHE = os.path.join(home_folder(), ".cache", "minialbert")
HOLD_OUT_ONE_IN = 50                # of this many documents, one is held out for validation
DECIDING_CHARACTERS = 10_000        # this many at a document's beginning decide if it is held out
CHUNK = 2**20                       # characters or bytes that are read or tokenised at once
SAMPLE = 20_000                     # characters that count_characters looks at


class TokenFile:
    """A token file, mapped into memory.

    train_tokens, valid_tokens: its two parts, arrays of token numbers
    source: what the user calls the corpus, for messages
    made_from: a dict that says which files and which tokenizer it was made from
    digest: a hash of all its tokens, by which a resumed run recognises its corpus
    """

    def __init__(self, path):
        self.path = path
        self.source = path
        for file_path in (path, f"{path}.json"):
            if not os.path.isfile(file_path):
                raise ValueError(f"{path}: not a token file: {file_path} is not there, or is not a "
                                 "regular file")
        kind = "a whole token file (delete it and its .json, and tokenise the text again)"
        with expecting(path, kind):
            description = read_json(f"{path}.json")
            dtype = {"uint16": np.uint16, "uint32": np.uint32}[description["dtype"]]
            num_train = description["train"]
            num_valid = description["valid"]
            self.made_from = description["made_from"]
            self.digest = description.get("digest")
            if self.digest is None:                      # files of earlier versions have none
                self.digest = hash_file(path)
            if not isinstance(self.made_from, dict):
                raise ValueError("made_from in its .json is not a JSON object")
            tokens = np.memmap(path, dtype, mode="r")
            self.train_tokens = tokens[:num_train]
            self.valid_tokens = tokens[num_train:]
            if len(self.train_tokens) != num_train or len(self.valid_tokens) != num_valid:
                raise ValueError(f"it has {len(tokens)} tokens, but its .json says "
                                 f"{num_train!r:.40} and {num_valid!r:.40}")


def hash_file(path):
    """Compute a hash of a file's content."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while True:
            content = file.read(CHUNK)
            if not content:
                return digest.hexdigest()
            digest.update(content)


def open_corpus(corpus, tokenizer, cache=CACHE, text_column="text"):
    """Return the TokenFile of a corpus. If the corpus is text, its token file is made in the folder
    `cache`, unless it is there already and the text has not changed.

    corpus: a file or folder of text, or a list of them; or one token file (.bin); None stands for
        the documentation on this machine
    ValueError if a token file was made with another tokenizer or is damaged, if other files are
    named beside it, or if a text_column is given with it.
    """
    if corpus is None:
        source = "the documentation on this machine"
        corpus = [docs_on_this_machine(cache)]
    else:
        corpus = list_of_paths(corpus)
        source = first_few(corpus)
    if any(path.endswith(".bin") for path in corpus):
        return open_token_file(corpus, tokenizer, text_column)
    paths = [os.path.abspath(path) for path in corpus]
    # The token file's name does not depend on the contents of the text: if they have changed,
    # tokenise() replaces the tokens.
    key = repr([paths, text_column, tokenizer.digest])
    name = hashlib.sha256(key.encode()).hexdigest()[:12] + ".bin"
    token_file = tokenise(corpus, tokenizer, os.path.join(cache, name), text_column)
    token_file.source = source                           # the file's name says nothing to the user
    return token_file


def open_token_file(corpus, tokenizer, text_column):
    """Open a corpus that is one token file -> TokenFile. ValueError as in open_corpus."""
    if len(corpus) > 1:
        raise ValueError(f"{first_few(corpus)}: a token file (.bin) must be the only file")
    if text_column != "text":
        raise ValueError(f"--text {text_column}: a token file has no columns")
    token_file = TokenFile(corpus[0])
    # A .json that somebody else wrote might not name a tokenizer.
    made_with = token_file.made_from.get("tokenizer")
    if made_with is not None and made_with != tokenizer.digest:
        raise ValueError(f"{token_file.path} was made with another tokenizer than "
                         f"{tokenizer.path}")
    return token_file


def tokenise(corpus, tokenizer, out, text_column="text", overwrite=True):
    """Tokenise a corpus into the files `out` and `out`.json -> TokenFile.

    If they are there already and were made in the same way, they are used as they are. If they were
    made in another way, they are made anew. With overwrite=False this is a ValueError instead.
    ValueError, too, if `out` does not end in .bin, if the corpus has no text or a damaged file, or
    if most of its characters become [UNK].
    """
    out = os.fspath(out)
    corpus = list_of_paths(corpus)
    files = corpus_files(corpus)
    made_from = facts_of_tokens(files, tokenizer, text_column)
    if not out.endswith(".bin"):                         # open_corpus recognises it by this
        raise ValueError(f"--out {out!r}: the name of a token file must end in .bin")
    remove_abandoned(out)                                # unfinished files of runs that were killed
    token_file = tokens_made_before(out, made_from, overwrite)
    if token_file is not None:
        return token_file
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    dtype = "uint32"
    if tokenizer.vocab_size <= 2**16:
        dtype = "uint16"
    with replace_file(out, shared=True) as file:
        counts = write_tokens(file, read_corpus(files, text_column), tokenizer, dtype)
        if not counts.has_text:
            raise ValueError(f"{first_few(corpus)}: there is no text in the corpus")
        check_unknown_share(first_few(corpus), counts.unknown_share, tokenizer)
        num_train, num_valid = sizes_of_parts(counts, corpus)
        file.flush()                                     # hash_file opens the file by its name
        description = {"dtype": dtype, "train": num_train, "valid": num_valid,
                       "digest": hash_file(file.name), "made_from": made_from}
        # A kill at any time must not leave tokens beside the description of other tokens, because
        # they would be used unnoticed. So these steps have this order:
        os.fsync(file.fileno())                  # 1. the new tokens are on disk, under another name
        remove_old_tokens(out, made_from)                # 2. now no other tokens have the name out
        write_json(f"{out}.json", description, shared=True)                   # 3. their description
    # 4. At the end of the with block replace_file has given the new tokens the name `out`.
    return TokenFile(out)


def facts_of_tokens(files, tokenizer, text_column):
    """Collect what decides the tokens of a corpus -> {name: value}, for its token file's .json.
    ValueError if a path or the text_column is not UTF-8."""
    paths = [os.path.abspath(path) for path in files]
    for name in paths + [text_column]:
        if NUL_OR_SURROGATE.search(name):                # read_json would refuse a surrogate
            raise ValueError(f"{ascii(name)}: not a name in UTF-8")
    file_facts = [[path, os.path.getsize(path), os.stat(path).st_mtime_ns] for path in paths]
    made_from = {"corpus": file_facts, "tokenizer": tokenizer.digest, "held_out": HOLD_OUT_ONE_IN,
                 "deciding": DECIDING_CHARACTERS}
    if text_column != "text":
        made_from["text"] = text_column
    return made_from


def tokens_made_before(out, made_from, overwrite):
    """Return the TokenFile `out` if it was made from the same facts (see facts_of_tokens), else
    None. If `out` will be replaced, a warning says so. ValueError if it must not be written."""
    if not os.path.exists(out):
        if os.path.exists(f"{out}.json") and "made_from" not in read_json(f"{out}.json"):
            raise ValueError(f"{out}.json exists and is not the description of a token file")
        return None
    token_file = TokenFile(out)
    if token_file.made_from == made_from:
        return token_file
    difference = (f"{out} was made from other files (by their path, size and time), with "
                  "another --text or tokenizer, or by an earlier version")
    if not overwrite:
        raise ValueError(f"{difference}; choose another --out, or say --overwrite")
    warn(f"{difference}: it is made anew")
    return None


class TokenCounts(NamedTuple):
    """What write_tokens has counted."""
    num_train: int          # tokens to train on
    num_valid: int          # tokens that are held out
    has_text: bool          # whether any document has a token beside the [SEP] at its end
    unknown_share: float    # 0 to 1: estimated share of the characters that became [UNK]


def write_tokens(file, lines, tokenizer, dtype):
    """Tokenise lines and write the token numbers -> TokenCounts. Those to train on are written
    first, those that are held out after them.

    lines: as read_corpus yields them. An empty line ends a document and becomes [SEP].
    """
    num_train = 0
    num_valid = 0
    num_documents = 0
    num_characters = 0
    num_unknown = 0.0                                    # an estimate: how many become [UNK]
    # The first chunk, which may be the only one, has a larger sample than those after it.
    sample_size = SAMPLE
    last_print_time = time.monotonic()
    # The held-out tokens wait in a file without a name until all others are written.
    with tempfile.TemporaryFile(dir=os.path.dirname(file.name)) as valid_file:
        for chunk in chunks_of_lines(mark_held_out(lines)):
            texts = [line for line, _ in chunk]
            num_sampled, unknown_in_sample = count_characters(texts, tokenizer, sample_size)
            sample_size = SAMPLE // 4
            num_here = sum(len(text) for text in texts)  # with white space, unlike num_sampled
            num_characters += num_here
            num_unknown += num_here * unknown_in_sample / max(1, num_sampled)
            num_documents += texts.count("")             # an empty line ends each document
            train_ids, valid_ids = encode_chunk(chunk, tokenizer)
            file.write(np.array(train_ids, dtype))
            valid_file.write(np.array(valid_ids, dtype))
            num_train += len(train_ids)
            num_valid += len(valid_ids)
            # read_corpus shows a progress bar on a terminal. Elsewhere a line a minute says how far
            # the work is.
            if not sys.stderr.isatty() and time.monotonic() - last_print_time >= 60:
                last_print_time = time.monotonic()
                print(f"{num_train + num_valid:,} tokens so far", file=sys.stderr, flush=True)
        valid_file.seek(0)
        shutil.copyfileobj(valid_file, file)
    has_text = num_train + num_valid > num_documents     # each document has one [SEP]
    unknown_share = num_unknown / max(1, num_characters)
    return TokenCounts(num_train, num_valid, has_text, unknown_share)


def mark_held_out(lines):
    """Yield (line, whether its document is held out) for the lines of read_corpus. Empty lines
    before a document are left out.

    Whether a document is held out depends on a hash of its first DECIDING_CHARACTERS characters. A
    hash of its first line would not be enough, because all documents of a corpus may begin with the
    same line.

    lines: they have no line ends; an empty line ends each document, also the last one
    """
    lines = iter(lines)                  # so each loop goes on where the one before it has stopped
    while True:
        beginning = beginning_of_document(lines)
        if not beginning:                                # no document is left
            return
        text = "".join(beginning)[:DECIDING_CHARACTERS]
        held_out = is_held_out(text, HOLD_OUT_ONE_IN)
        for line in beginning:
            yield line, held_out
        if beginning[-1] != "":                          # the document goes on
            for line in lines:
                yield line, held_out
                if line == "":
                    break


def beginning_of_document(lines):
    """Take the lines of the next document from an iterator, until they have DECIDING_CHARACTERS
    characters or the document ends -> a list of lines. It is empty if no document is left."""
    beginning = []
    num_characters = 0
    for line in lines:
        if line == "" and not beginning:                 # an empty line before the document
            continue
        beginning.append(line)
        num_characters += len(line)
        if line == "" or num_characters >= DECIDING_CHARACTERS:
            break
    return beginning


def is_held_out(text, one_in):
    """Return True for about one in `one_in` texts.

    A hash of the text decides, so the answer is the same on every machine and does not depend on
    other texts.
    """
    return zlib.crc32(text.encode()) % one_in == 0


def chunks_of_lines(marked_lines):
    """Collect the pairs of mark_held_out: yield lists of them, each of about CHUNK characters."""
    chunk = []
    num_characters = 0
    for line, held_out in marked_lines:
        chunk.append((line, held_out))
        num_characters += len(line) + 1                  # so that empty lines count, too
        if num_characters > CHUNK:
            yield chunk
            chunk = []
            num_characters = 0
    yield chunk


def count_characters(texts, tokenizer, sample_size=SAMPLE):
    """Count characters in a sample of texts, without white space -> (all, those that become [UNK]).

    Characters are counted, not tokens, because an [UNK] stands for a whole word. Thai has no spaces
    between words, so a long row of letters is one word. A few [UNK] may stand for most of a text.

    To find out which characters a token stands for takes time. So the sample has only about
    `sample_size` characters, in pieces that are drawn at random. A smaller text is counted whole.
    """
    pieces = []                                          # each has at most 1,000 characters
    for text in texts:
        for begin in range(0, len(text), 1000):
            pieces.append(text[begin:begin + 1000])
    total = sum(len(piece) for piece in pieces)          # in characters
    sample = pieces
    if total > sample_size:
        num_to_draw = math.ceil(len(pieces) * sample_size / total)
        sample = random.Random(0).sample(pieces, num_to_draw)
    encodings = tokenizer.backend.encode_batch(sample, add_special_tokens=False)
    num_characters = 0
    num_unknown = 0
    for piece, encoding in zip(sample, encodings):
        num_characters += len("".join(piece.split()))
        for token, (begin, end) in zip(encoding.ids, encoding.offsets):
            if token == tokenizer.unk_id:
                num_unknown += len("".join(piece[begin:end].split()))
    return num_characters, num_unknown


def encode_chunk(chunk, tokenizer):
    """Tokenise a chunk of lines -> (token numbers to train on, held-out token numbers).

    chunk: [(line, whether it is held out)]; an empty line ends a document and becomes [SEP]
    """
    train_ids = []
    valid_ids = []
    texts = [line for line, _ in chunk]
    for (line, held_out), ids in zip(chunk, tokenizer.encode(texts)):
        if line == "":
            ids = [tokenizer.sep_id]
        if held_out:
            valid_ids.extend(ids)
        else:
            train_ids.extend(ids)
    return train_ids, valid_ids


def check_unknown_share(what, unknown_share, tokenizer, only_warn=False):
    """Raise ValueError if most characters of a text become [UNK]. Print a warning if over a tenth
    of them do. With only_warn=True there is a warning in both cases.

    what: the name of the text, for the message
    unknown_share: see TokenCounts
    """
    message = (f"{what}: {unknown_share:.0%} of the characters become [UNK] with the tokenizer in "
               f"{tokenizer.path}. Perhaps it is of another language, or accents are characters of "
               "their own (uconv -x nfc joins them with their letters), or spaces must be put "
               "between the words, because over 100 letters in a row are one [UNK]")
    if unknown_share > 0.5 and not only_warn:
        raise ValueError(message)
    if unknown_share > 0.1:
        warn(message)


def sizes_of_parts(counts, corpus):
    """Return the number of tokens to train on and the number of tokens that are held out.

    If the documents are few, or if all have the same first DECIDING_CHARACTERS characters, they may
    all be in one part. Then the last tokens of the file are held out. The file stays as it is, for
    held-out tokens stand at its end.
    """
    if counts.num_train > 0 and counts.num_valid > 0:
        return counts.num_train, counts.num_valid
    num_tokens = counts.num_train + counts.num_valid
    num_valid = max(1, num_tokens // HOLD_OUT_ONE_IN)
    warn(f"{first_few(corpus)}: there are too few different documents to hold out one in "
         f"{HOLD_OUT_ONE_IN}: the last {num_valid} tokens are held out instead (in a .txt a blank "
         "line ends a document)")
    return num_tokens - num_valid, num_valid


def remove_old_tokens(out, made_from):
    """Remove the token file `out`, if there is one, unless it was made from the same facts.

    Another process may have made the same tokens in the meantime. They are not removed, because
    that process is about to open them. tokenise will replace them by equal ones.
    """
    if os.path.exists(f"{out}.json"):
        old_description = read_json(f"{out}.json")
        if old_description.get("made_from") == made_from:
            return
    with suppress(FileNotFoundError):                    # there may be no old tokens
        os.remove(out)


# ---- Reading a corpus -------------------------------------------------------------------
# The functions lines_of_... yield lines. A blank line means that a document ends; read_corpus_file
# strips it to "".

CORPUS_FILE = re.compile(r"(?si).*(\.txt|\.jsonl|\.csv)(\.gz|\.bz2|\.xz)?")
# A .bz2 or .xz may consist of several compressed streams. If a later one is damaged, the text may
# end before it without an error.
OPEN_COMPRESSED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
# NULs and surrogates are replaced by U+FFFD. A surrogate is half a character. Python makes one of
# each byte that is not UTF-8, because the files are opened with errors="surrogateescape".
NUL_OR_SURROGATE = re.compile("[\0\ud800-\udfff]")
# expecting() puts this text into its message: "PATH: not a whole, undamaged file: ...".
UNDAMAGED_FILE = "a whole, undamaged file"
# WikiExtractor writes such a line before each article of Wikipedia, and another one after it.
WIKI_EXTRACTOR_LINE = re.compile(r'<doc id="|</doc>\s*$')
LONGEST_CELL = 2**28                # characters of a cell in a .csv
# From this number of characters on, read_corpus_file checks a text's encoding while it reads it. A
# shorter text is checked only at its end, because perhaps only its first part is damaged.
ENOUGH_TO_JUDGE = 1_000_000


def list_of_paths(corpus):
    """Return the list of paths of a corpus that is given as one path or as several. ValueError if
    there are none."""
    if isinstance(corpus, (str, os.PathLike)):           # one path
        corpus = [corpus]
    paths = [os.fspath(path) for path in corpus]
    if not paths:
        raise ValueError("the corpus is an empty list of paths")
    return paths


def corpus_files(corpus):
    """List the files of a corpus; those of a folder are sorted. ValueError if a path has no file of
    a corpus."""
    files = []
    for path in corpus:
        if not os.path.exists(path):
            raise ValueError(f"{path} does not exist")
        if os.path.isdir(path):
            files += corpus_files_below(path)
        elif is_corpus_file(path):
            files.append(path)
        else:
            raise ValueError(f"{path}: not a regular file whose name ends in .txt, .jsonl (also "
                             "for a .json with an object on each line) or .csv, or in one of these "
                             "and .gz, .bz2 or .xz")
    return files


def is_corpus_file(path):
    """Return True for a regular file with one of the endings of a corpus file. Other files are not
    read: a pipe or a device may never end."""
    return CORPUS_FILE.fullmatch(path) is not None and os.path.isfile(path)


def corpus_files_below(folder):
    """List the corpus files below a folder, sorted. A warning says how many other files there are.

    What begins with a dot is hidden. Hidden files and what is in hidden folders are left out. For
    example, Jupyter keeps copies of files in .ipynb_checkpoints, which would double the text.
    ValueError if there is no corpus file, OSError for a subfolder that cannot be read.
    """
    def raise_error(error):
        raise error

    found = []
    num_skipped = 0                                      # a hidden or linked folder counts as one
    for parent, subfolders, names in os.walk(folder, onerror=raise_error):
        for name in subfolders:
            # os.walk does not follow links to folders.
            if name.startswith(".") or os.path.islink(os.path.join(parent, name)):
                num_skipped += 1
        # The list is changed in place, because os.walk will enter only what is left in it.
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            path = os.path.join(parent, name)
            if is_corpus_file(path) and not name.startswith("."):
                found.append(path)
            else:
                num_skipped += 1
    if not found:
        raise ValueError(f"{folder}: no .txt, .jsonl or .csv (or one as .gz, .bz2, .xz) there")
    if num_skipped > 0:
        warn(f"{folder}: skipped files and folders: {num_skipped}; they are not .txt, .jsonl or "
             ".csv, or no regular files, or links to folders, or a name begins with a dot")
    return sorted(found)


def read_corpus(files, text_column="text"):
    """Yield the lines of a corpus, without the white space around them. At least one empty line
    follows each document. A progress bar is shown.

    files: the list that corpus_files returns
    text_column: the field or column of the text in a .jsonl or a .csv
    NULs and bytes that are not UTF-8 become U+FFFD, which BERT's normaliser removes. ValueError
    names a damaged file, a text in another encoding, or the line of a .jsonl or a .csv that is not
    a document.
    """
    has_columns = any(CORPUS_FILE.fullmatch(path)[1].lower() != ".txt" for path in files)
    if text_column != "text" and not has_columns:
        raise ValueError(f"--text {text_column}: {first_few(files)}: a .txt has no columns")
    num_bytes = sum(os.path.getsize(path) for path in files)
    with tqdm(desc="reading the corpus", total=num_bytes, unit="B", unit_scale=True,
              disable=None) as bar:
        num_characters = 0
        num_replaced = 0
        for path in files:
            # `yield from` yields all lines of the file. Its value is what the generator returns.
            characters_here, replaced_here = yield from read_corpus_file(path, bar, text_column)
            num_characters += characters_here
            num_replaced += replaced_here
            yield ""
    # A few replaced characters in a file are taken for damage. But if many small files have a few
    # each, they are in another encoding. So all files are also checked together.
    check_encoding(f"{path} and the files before it", num_characters, num_replaced)


def read_corpus_file(path, bar, text_column):
    """Yield the lines of one file. Standard error says how many characters were replaced.

    After the last line the generator returns how many characters it has read and replaced.
    bar: a progress bar, which is moved by the bytes that are read from the disk
    """
    bytes_before = bar.n
    num_characters = 0
    num_replaced = 0                                     # NULs and bytes that are not UTF-8
    with open(path, "rb") as raw:
        for line in lines_of_corpus_file(path, raw, text_column):
            bytes_read = bytes_before + raw.tell()
            bar.update(bytes_read - bar.n)               # update() wants the increase
            num_characters += len(line)
            line, replaced_here = NUL_OR_SURROGATE.subn("\ufffd", line)
            num_replaced += replaced_here
            # A large file in another encoding is refused here, before all of it is read.
            if num_characters > ENOUGH_TO_JUDGE:
                check_encoding(path, num_characters, num_replaced)
            yield line.strip()
    check_encoding(path, num_characters, num_replaced)
    if num_replaced > 0:
        tqdm.write(f"{printable(path)}: replaced {num_replaced} NULs or bytes that are not UTF-8",
                   sys.stderr)
    return num_characters, num_replaced


def lines_of_corpus_file(path, raw, text_column):
    """Return a generator of the lines of an open file, whose name says how it must be read. A byte
    that is not UTF-8 becomes a surrogate: see NUL_OR_SURROGATE."""
    kind, compression = CORPUS_FILE.fullmatch(path.lower()).groups()          # ".txt", ".gz"
    if raw.peek(2).startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        # UTF-32 may begin with the same two bytes.
        raise ValueError(f"{path}: not UTF-8, but UTF-16 or UTF-32; iconv converts other encodings")
    with expecting(path, "a file of a corpus"):
        check_no_lfs_pointer(path)
    if kind == ".txt" and raw.peek(2).startswith(b'{"'):
        warn(f"{path}: it begins as a .jsonl does, but because of its ending all of it is read as "
             "text, also the names of the fields")
    if compression is not None and not raw.peek(1):
        raise ValueError(f"{path}: not {UNDAMAGED_FILE}: it is empty")
    newline = None                                       # every kind of line end becomes "\n"
    if kind == ".csv":
        # The module csv needs the line ends in quoted cells unchanged. pandas may write a carriage
        # return alone in a cell without quotes. With "\n" csv refuses such a cell; with "" it would
        # cut the row in two.
        newline = "\n"
    unpacked = raw
    if compression is not None:
        unpacked = OPEN_COMPRESSED[compression](raw)
    stream = io.TextIOWrapper(unpacked, encoding="utf-8-sig", errors="surrogateescape",
                              newline=newline)
    if kind == ".txt":
        return lines_of_text(path, stream)
    if kind == ".jsonl":
        return lines_of_jsonl(path, stream, text_column)
    return lines_of_csv(path, stream, text_column)


def check_encoding(what, num_characters, num_replaced):
    """Raise ValueError if too much of a file, or of several together, is not UTF-8.

    A few NULs or bytes that are not UTF-8 are taken for damage. The limit is ten, or one in a
    thousand characters if that is more. A text in Latin-1 usually has more, and in UTF-16 about
    every second character is a NUL.
    """
    if num_replaced > max(10, num_characters / 1000):
        raise ValueError(f"{what}: not UTF-8: of {num_characters:,} characters {num_replaced:,} "
                         "are NULs or bytes that are not UTF-8; iconv converts other encodings, "
                         "and the name of a compressed file must end in .gz, .bz2 or .xz")


def lines_of_text(path, stream):
    """Yield the lines of an open .txt. A line of over CHUNK characters is yielded in pieces.

    A blank line is yielded, because it ends a document. A blank piece of a longer line ends no
    document, so it is left out. A WIKI_EXTRACTOR_LINE becomes a blank line. ValueError if the file
    is damaged.
    """
    begins_line = True                                   # whether the next piece begins a line
    # readline returns a line, or the next CHUNK characters of a line that has more.
    with stream, expecting(path, UNDAMAGED_FILE):
        while True:
            piece = stream.readline(CHUNK)
            if piece == "":                              # the end of the file
                return
            ends_line = piece.endswith("\n")
            is_whole_line = begins_line and ends_line
            if begins_line and WIKI_EXTRACTOR_LINE.match(piece):
                yield ""
            elif is_whole_line or piece.strip() != "":
                yield piece
            begins_line = ends_line                      # for the next piece


def whole_lines(path, stream):
    """Yield the lines of an open .jsonl or .csv. ValueError if the file is damaged."""
    with stream, expecting(path, UNDAMAGED_FILE):
        yield from stream


def lines_of_jsonl(path, stream, text_column):
    """Yield the lines of the documents in a .jsonl, and an empty line after each document."""
    for number, row in enumerate(whole_lines(path, stream), start=1):
        if row.strip() == "":
            continue
        with expecting(f"{path}:{number}", f"a JSON object with a text {text_column!r}"):
            document = document_of_row(row, text_column)
        # The escapes \u0000 and \ud800 of JSON stand for a NUL and half a character. They do not
        # mean another encoding, so they are replaced here, before read_corpus_file counts.
        if "\\u" in row:                                 # most rows have none, so this saves time
            document = NUL_OR_SURROGATE.sub("\ufffd", document)
        yield from lines_of_document(document)


def document_of_row(row, text_column):
    """Return the text in the field text_column of a line of a .jsonl, "" if it is null. ValueError
    if there is no such field, or if it is no text."""
    # strict=False allows tabs and other control characters in a text. Half a character such as
    # \ud800 is no error: lines_of_jsonl replaces it.
    try:
        value = json.loads(row, strict=False)
    except json.JSONDecodeError as error:                # str(error) would say "line 1", too
        raise ValueError(f"{error.msg}, at character {error.pos + 1}") from error
    if not isinstance(value, dict):
        raise ValueError(f"it is a {type(value).__name__}")
    if text_column not in value:
        fields = ", ".join(repr(name) for name in value)
        raise ValueError(f"it has no {text_column!r} among its fields {fields:.300}; --text names "
                         "the field")
    document = value[text_column]
    if document is None:                                 # as an empty cell of a .csv
        return ""
    if not isinstance(document, str):
        raise ValueError(f"{text_column!r} is {document!r:.60}, which is no text")
    return document


def lines_of_csv(path, stream, text_column):
    """Yield the lines of the documents in a .csv, and an empty line after each document. A row has
    one document."""
    rows = rows_of_csv(path, whole_lines(path, stream))
    _, header = next(rows, (0, []))          # the names of the columns; an empty file has none
    if header.count(text_column) != 1:
        raise ValueError(f"{path}: {header.count(text_column)} of its columns have the name "
                         f"{text_column!r}, not one, in {header!r:.300}; --text names the column, "
                         "and commas separate the columns")
    column = header.index(text_column)
    for number, cells in rows:
        # The text must be there, but columns behind it may be missing.
        if len(cells) <= column or len(cells) > len(header):
            raise ValueError(f"{path}:{number}: {len(cells)} columns, not {len(header)}; a text "
                             "with a comma in it needs quotes")
        yield from lines_of_document(cells[column])


def rows_of_csv(path, lines):
    """Yield (number of the line, cells) for each row of a .csv, if the row is not empty.

    A cell in quotes may have line breaks. Then the row has several lines, and the number is that of
    its last line. The path is for messages.
    """
    csv.field_size_limit(LONGEST_CELL)                   # its own limit is 131,072 characters
    rows = csv.reader(lines, strict=True)
    row_begins = 1                                       # the line in which the next row begins
    try:
        for cells in rows:
            if cells:                                    # an empty line has none
                yield rows.line_num, cells
            row_begins = rows.line_num + 1
    except csv.Error as error:                           # such as a quote at a wrong place
        reason = str(error)
        if "new-line" in reason:                         # Python's message advises about open()
            reason = "a carriage return has neither quotes around it nor a line feed after it"
        raise ValueError(f"{path}:{rows.line_num}: {reason}; the row begins in line "
                         f"{row_begins}") from error


def lines_of_document(document):
    """Yield the lines of a document, in pieces of CHUNK characters at most, then an empty line."""
    for line in document.splitlines():
        for begin in range(0, len(line), CHUNK):
            piece = line[begin:begin + CHUNK]
            if piece.strip():                            # a blank one would end the document
                yield piece
    yield ""


# ---- The documentation on this machine: the corpus that needs no download ---------------

EXTRACTION_VERSION = 3  # the version of the rules below, part of the cached file's name


def docs_on_this_machine(cache=CACHE):
    """Return the path of a .jsonl file with the English prose in the documentation of Python, torch
    and numpy. Each machine that can run this has them. The file is made in `cache` on first use.

    Each line is a paragraph: {"part": its source, "text": the paragraph, "code": where in the text
    something was marked as code: [[first character, one past the last], ...]}. No text comes twice.
    """
    packages = {name: importlib.metadata.distribution(name) for name in ("torch", "numpy")}
    versions = [sys.version.split()[0]] + [package.version for package in packages.values()]
    path = os.path.join(cache, f"docs-{EXTRACTION_VERSION}-{'-'.join(versions)}.jsonl")
    if os.path.isfile(path):
        return path
    from pydoc_data.topics import topics                 # imported here: it is large
    sources = [("python.reference", topics[topic]) for topic in sorted(topics)]
    sources += docstrings("python", sysconfig.get_path("stdlib"))
    for name, package in packages.items():
        sources += docstrings(name, package.locate_file(name))
    rows = {}                                            # by the text in lower case
    for part, docstring in tqdm(sources, desc="collecting the documentation", disable=None):
        for lines in paragraphs(docstring):
            text, code_spans = remove_markup(lines)
            if is_prose(lines, text) and text.lower() not in rows:
                rows[text.lower()] = {"part": part, "text": text, "code": code_spans}
    os.makedirs(cache, exist_ok=True)
    # Another process may have made the same file in the meantime. Then that file stays. If it were
    # written again, its time would change, and token files made from it would be made again, too.
    if not os.path.isfile(path):
        with replace_file(path, shared=True) as file:
            for row in rows.values():
                file.write(json.dumps(row).encode() + b"\n")
    return path


SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__",
                   "_vendor", "lib2to3", "pydoc_data"}
DOCSTRING = re.compile(r'(?s)(?<![\w\'"])[rRuU]?("""|\'\'\')(.*?)\1')


def docstrings(package_name, root):
    """List (module, text) of all texts in triple quotes in the Python files below the folder root.

    Nearly all are docstrings. No module is imported.
    """
    found = []
    for folder, subfolders, names in os.walk(root):
        # The list is changed in place, because os.walk will enter only what is left in it.
        subfolders[:] = sorted(set(subfolders) - SKIPPED_FOLDERS)
        for name in sorted(names):
            path = os.path.join(folder, name)
            # A link may lead to a file that is not there.
            if not name.endswith(".py") or not os.path.isfile(path):
                continue
            with open(path, encoding="utf-8", errors="replace") as file:
                source = file.read()
            module = os.path.relpath(path, root).removesuffix(".py").replace(os.sep, ".")
            for _, text in DOCSTRING.findall(source):
                found.append((f"{package_name}.{module}", text))
    return found


# The text of a list item or of an argument may stand after this: "- ", "1. ", "name (int): ".
ITEM = re.compile(r"\s*([-*+o] |\d+[.)] |\w+ ?\(.*?\): |[*`]*\w+[*`]*: (?=[A-Z]))")
# A line like this stands above an indented text: "name : type", "name (type):", "Returns:".
HEADING = re.compile(r"[\w*, ]+ : .*|\w+ ?\([^)]*\):|\w+:?")


def paragraphs(docstring):
    """Yield the lines of each paragraph; a list item or an argument is a paragraph of its own."""
    for block in prose_blocks(docstring):
        lines = []                           # of the present paragraph
        first_indent = 0                     # the indentation of its first line
        for line in block.splitlines():
            item = ITEM.match(line)                      # None if the line begins no item
            if lines:
                is_after_heading = HEADING.fullmatch(" ".join(lines).strip()) is not None
                is_indented_less = indentation(line) < first_indent
                if item is not None or is_after_heading or is_indented_less:
                    yield lines
                    lines = []
            if not lines:                                # this line begins a paragraph
                first_indent = indentation(line)
            if item is not None:
                line = line[item.end():]                 # without its "- " or "name (int): "
            lines.append(line)
        yield lines


def prose_blocks(docstring):
    """Yield the blocks of a docstring that are not code. Blank lines separate the blocks.

    In reStructuredText a block that ends in "::" announces code. The blocks after it are code, up
    to the first one that is not indented more than the announcing block.
    """
    largest_prose_indent = math.inf          # a block that is indented more than this is code
    for block in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        block_indent = indentation(block)
        if block_indent > largest_prose_indent:
            continue
        largest_prose_indent = math.inf
        if block.rstrip().endswith("::"):
            largest_prose_indent = block_indent
        yield block


def indentation(text):
    """Count the white space at the beginning of a text."""
    return len(text) - len(text.lstrip())


# MARKUP finds marks of reStructuredText around words. Each group has the name of its mark.
MARKUP = re.compile(r"""
    :(?:ref|doc|pep|rfc|math):`~?(?P<text_role>[^`<]*?)(?:\s*<[^`>]*>)?`   # :ref:`text <target>`
  | :[\w:+-]+:`~?(?P<code_role>[^`<]*?)(?:\s*<[^`>]*>)?`                  # :class:`~torch.Tensor`
  | ``(?P<literal>.+?)``                                                  # ``code``
  | `~?(?P<link>[^`<]+?)(?:\s*<[^`>]*>`_{0,2}|`_{1,2})                    # `text <target>`_
  | `~?(?P<name>[^`<]+?)`                                                 # `name`
  | \*\*(?P<bold>[^*\s][^*]*)\*\*                                         # **bold**
  | \*(?P<slanted>[^*\s][^*]*)\*(?!\w)                                   # *slanted*
  """, re.VERBOSE)
# These marks mean code. code_role also finds a few rare roles that are no code, such as :term:.
CODE_MARKS = ("code_role", "literal", "name")
# Old texts quote a `word' like this. Where two words are quoted, MARKUP takes all the text between
# the two backticks for a name.
OLD_QUOTATION = re.compile(r"`[\w.()]+'(?!\w)")


def remove_markup(lines):
    """Join a paragraph's lines and remove the mark-up -> text, [[begin, end], ...] of its code.

    If the paragraph quotes a `word' like this, the list is empty, because quotations and code
    cannot be told apart.
    """
    marked = " ".join(" ".join(lines).split())
    # A "::" before a block of code becomes ":". So does a "::" inside a sentence, as in x[::2], but
    # only a few paragraphs in a thousand have one.
    marked = marked.replace("::", ":")
    text = ""
    code_spans = []
    position = 0                                         # in the marked text
    for match in MARKUP.finditer(marked):
        text += marked[position:match.start()]
        mark = match.lastgroup                           # the only group that has matched
        content = match[mark]
        if mark in CODE_MARKS:
            code_spans.append([len(text), len(text) + len(content)])
        text += content
        position = match.end()
    if OLD_QUOTATION.search(marked):
        code_spans = []
    return text + marked[position:], code_spans


# A line that is not prose begins with a directive, a prompt, a row of signs, a definition, ...
NOT_PROSE = re.compile(r"\s*(\.\. |\$ |[-=+|~^#*]{3,}|:\w+|@|\w+ = |def |class |import )")
PLAIN_WORD = re.compile(r"[(\"']?[A-Za-z][a-z'-]*[.,;:!?)\"']*")
COMMON_WORDS = frozenset("the a an of to in is are be and or for with that this it as if by on not "
                         "from which when can will".split())
# These are signs of code: braces, bars, backslashes, %s, or three or more of = < >.
CODE_SIGNS = re.compile(r"[{}\\|]|%[sdr]|[=<>].*[=<>].*[=<>]")


def is_prose(lines, text):
    """Tell whether a paragraph is English prose.

    lines: the paragraph with its mark-up; text: the same without, as remove_markup makes it
    """
    words = text.split()
    if len(words) < 8 or not text.isascii():
        return False
    if not text[0].isalpha() or text[-1] not in ".!?:)":
        return False
    if any(NOT_PROSE.match(line) for line in lines) or CODE_SIGNS.search(text):
        return False
    num_plain = sum(1 for word in words if PLAIN_WORD.fullmatch(word))
    num_common = sum(1 for word in words if word.lower() in COMMON_WORDS)
    return num_plain >= 0.75 * len(words) and num_common >= 0.15 * len(words)


# ---- The command line -------------------------------------------------------------------

def arguments(argv):
    """Parse the command line."""
    parser = CommandParser("data.py", USAGE)
    parser.add_argument(
        "--corpus", type=path_name, nargs="+", action="extend", metavar="PATH",
        help="files and folders of text (default: the documentation on this machine)")
    parser.add_argument(
        "--text", default="text", metavar="COLUMN",
        help="the field of the text in a .jsonl, the column in a .csv (default: text)")
    what_to_do = parser.add_mutually_exclusive_group(required=True)
    what_to_do.add_argument(
        "--tokenizer", metavar="DIR",
        help="tokenise with the tokenizer of this folder or Hugging Face model")
    what_to_do.add_argument(
        "--train-tokenizer", type=int, metavar="N",
        help="learn a vocabulary of N tokens, from 100 to 1,048,576, instead of tokenising")
    parser.add_argument(
        "--lowercase", action=argparse.BooleanOptionalAction, default=None,
        help="whether the learned vocabulary ignores case, accents and all other combining marks, "
        "as that of BERT uncased does; many languages need these marks (default: it does)")
    parser.add_argument(
        "--out", type=path_name, required=True, metavar="PATH",
        help="the token file to write, NAME.bin, or the folder for the learned vocabulary")
    parser.add_argument(
        "--overwrite", action="store_true",
        help="replace a token file --out of another corpus, --text or tokenizer (default: this is "
        "an error)")
    args = parser.parse_args(argv)
    if args.tokenizer is not None and args.lowercase is not None:
        raise ValueError("--lowercase is for a vocabulary that is learned, not for --tokenizer")
    return args


def run(args):
    """Tokenise a corpus or learn a vocabulary, as the command line says."""
    corpus = args.corpus
    if corpus is None:
        corpus = [docs_on_this_machine()]
    if args.train_tokenizer is not None:
        lowercase = args.lowercase
        if lowercase is None:                            # the flag was not given
            lowercase = True
        tokenizer = train_tokenizer(corpus, args.train_tokenizer, args.out, lowercase, args.text)
        print(f"{args.out}: {tokenizer.vocab_size} tokens of the {args.train_tokenizer} asked for")
    else:
        folder = fetch(args.tokenizer, weights=False)
        token_file = tokenise(corpus, Tokenizer(folder), args.out, args.text, args.overwrite)
        print(f"{args.out}: {len(token_file.train_tokens):,} tokens to train on, "
              f"{len(token_file.valid_tokens):,} held out")


def main(argv=None):
    """Run the command line argv (None: that of the program) -> exit status: see run_command."""
    def action():
        run(arguments(argv))
    return run_command("data.py", action)


if __name__ == "__main__":
    sys.exit(main())
