"""Text to tokens to masked batches.

    python data.py --corpus wiki/ --tokenizer bert-base-uncased --out wiki.bin     # tokenise once
    python data.py --corpus wiki/ --train-tokenizer 8192 --out my-tokenizer        # a vocabulary
    python data.py --train-tokenizer 8192 --out my-tokenizer     # the same from the embedded corpus

A corpus is any mix of files and folders: .txt (a blank line between documents) and .jsonl (a `text`
field a line), each also as .gz, .bz2 or .xz. It is streamed once, in constant memory, into a flat file
of token numbers, which is memory-mapped from then on: documents end to end, [SEP] after each, first
those to train on, then those held out. A JSON file beside it says what it was made from.
"""
import argparse
import bz2
import gzip
import hashlib
import importlib.util
import inspect
import io
import json
import lzma
import os
import re
import shutil
import sys
import sysconfig
import warnings
import zlib

import numpy as np
import tokenizers
from tqdm import tqdm

CACHE = os.path.join(os.path.expanduser("~"), ".cache", "minialbert")
HELD_OUT = 50                                            # one document in so many is for validation
LONGEST = 1 << 20                                        # characters; a longer line is read in pieces

# ---- Where models and tokenizers come from -------------------------------------------------------


def fetch(name, wanted):
    """A folder as it is, or a Hugging Face name: of its files just those in `wanted`, a list of
    alternatives each; an alternative that ends in None may be absent. ValueError if it cannot be had."""
    if os.path.isdir(name):
        return name
    if os.path.exists(name) or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise ValueError(f"{name}: neither a folder nor the name of a model on the Hugging Face hub")
    import huggingface_hub as hub                        # here: it is slow to import, and seldom needed
    from huggingface_hub.errors import EntryNotFoundError
    folder = None
    for alternatives in wanted:
        for file in alternatives:
            try:
                folder = folder if file is None else os.path.dirname(hub.hf_hub_download(name, file))
                break
            except EntryNotFoundError:
                continue
            except (OSError, ValueError) as error:       # the hub's errors are kinds of these two
                raise ValueError(f"{name}: no such folder, and the hub did not give {file}: "
                                 f"{str(error).strip().splitlines()[0]}") from error
        else:
            raise ValueError(f"{name}: on the hub, but without {' or '.join(alternatives)}")
    return folder


TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")


class Tokenizer:
    """A BERT tokenizer read from a folder's tokenizer.json or vocab.txt, its special tokens by name.

    Cased or not is what the files say; where they are silent (BioBERT's are), a vocabulary that holds
    capital letters is cased. Raises ValueError that names the file.
    """

    def __init__(self, path):
        self.path = path
        whole, vocab, config = (os.path.join(path, name) for name in TOKENIZER_FILES)
        try:
            if os.path.isfile(whole):
                file, self.core = whole, tokenizers.Tokenizer.from_file(whole)
                self.core.no_padding(), self.core.no_truncation()
            elif os.path.isfile(vocab):
                file, words = vocab, open(vocab, encoding="utf-8").read().splitlines()
                lower = not any(re.search("[A-Z]", w) for w in words if not re.fullmatch(r"\[.*\]", w))
                if os.path.isfile(config):
                    lower = json.load(open(config, encoding="utf-8")).get("do_lower_case", lower)
                self.core = wordpiece({word: i for i, word in enumerate(words)}, lower)
            else:
                raise ValueError(f"{path}: no tokenizer.json or vocab.txt in it")
        except Exception as error:                       # the Rust library raises nothing narrower
            raise error if "no tokenizer.json" in str(error) else ValueError(
                f"{file}: not a tokenizer: {str(error).splitlines()[0]}") from error
        self.vocab_size = self.core.get_vocab_size()
        for name in ("pad", "unk", "cls", "sep", "mask"):
            setattr(self, name, self.core.token_to_id(f"[{name.upper()}]"))
            if getattr(self, name) is None:
                raise ValueError(f"{file}: it has no token [{name.upper()}]")
        self.special = np.array([self.pad, self.unk, self.cls, self.sep, self.mask])
        ordinary = np.setdiff1d(np.arange(self.vocab_size), self.special)
        self.ordinary = ordinary if len(ordinary) else self.special
        self.digest = hashlib.sha256(self.core.to_str().encode()).hexdigest()[:16]

    def encode(self, texts):
        """Token numbers of each text, without special tokens."""
        return [e.ids for e in self.core.encode_batch_fast(texts, add_special_tokens=False)]

    def save(self, path):
        """Copies the files it was read from, so that whoever reads them there reads the same."""
        for name in TOKENIZER_FILES:
            if os.path.isfile(os.path.join(self.path, name)):
                shutil.copyfile(os.path.join(self.path, name), os.path.join(path, name))


def wordpiece(vocab, lowercase):
    core = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    core.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    core.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    core.decoder = tokenizers.decoders.WordPiece()
    core.add_special_tokens([s for s in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if s in vocab])
    return core


def train_tokenizer(corpus, size, out, lowercase=True):
    """Writes the vocab.txt of a WordPiece tokenizer of `size` tokens, learned from the corpus."""
    core = wordpiece({"[UNK]": 0}, lowercase)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    core.train_from_iterator((line for line in read_corpus(corpus) if line), tokenizers.trainers.
                             WordPieceTrainer(vocab_size=size, special_tokens=special))
    words = sorted(core.get_vocab().items(), key=lambda item: item[1])
    os.makedirs(out, exist_ok=True)
    with open(os.path.join(out, "vocab.txt"), "w", encoding="utf-8") as file:
        file.writelines(word + "\n" for word, _ in words)
    with open(os.path.join(out, "tokenizer_config.json"), "w", encoding="utf-8") as file:
        json.dump({"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase}, file)
    return Tokenizer(out)


# ---- Reading a corpus ----------------------------------------------------------------------------

OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def kind_of(path):
    """wiki.txt.xz -> (.txt, .xz); the first is empty where it is no corpus file."""
    stem, packed = os.path.splitext(path)
    if packed not in OPENERS:
        stem, packed = path, ""
    kind = os.path.splitext(stem)[1]
    return kind if kind in (".txt", ".jsonl") else "", packed


def corpus_files(corpus):
    """The files of a corpus in a fixed order. ValueError for a path with nothing to read."""
    files = []
    for path in corpus:
        if os.path.isdir(path):
            inside = sorted(os.path.join(d, f) for d, _, fs in os.walk(path) for f in fs if kind_of(f)[0])
        else:
            inside = [path] if kind_of(path)[0] and os.path.isfile(path) else []
        if not inside:
            raise ValueError(f"{path}: not a corpus: want .txt or .jsonl, also as .gz, .bz2 or .xz, "
                             "or a folder of them" if os.path.exists(path) else f"{path}: no such file")
        files += inside
    return files


def read_corpus(corpus):
    """Yields the lines of a corpus, and an empty one after each document, with a progress bar.

    Bytes that are not UTF-8 become U+FFFD and NULs become spaces, with a warning that counts them.
    Raises ValueError, naming file and line, for a damaged file or a line that is not a document.
    """
    files = corpus_files(corpus)
    total = sum(os.path.getsize(path) for path in files)
    with tqdm(total=total, unit="B", unit_scale=True, desc="reading the corpus", disable=None) as bar:
        for path in files:
            kind, packed = kind_of(path)
            with open(path, "rb") as raw:
                stream = OPENERS[packed](raw) if packed else raw
                text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape")
                try:
                    for line in repaired(text, path):
                        yield from document_of(line, path) if kind == ".jsonl" else [line[1].strip()]
                        bar.update(raw.tell() - bar.n if len(files) == 1 else 0)
                except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
                    raise ValueError(f"{path}: damaged or cut short: {error}") from error
                yield ""
            bar.update(os.path.getsize(path) if len(files) > 1 else total - bar.n)


def repaired(text, path):
    """(line number, line) of a text file, in pieces of LONGEST characters, without the bad bytes."""
    bad = nul = number = 0
    begins = True
    while line := text.readline(LONGEST):
        number += begins
        begins = line.endswith("\n")
        if not line.isascii():
            line, found = re.subn("[\udc80-\udcff]", "\ufffd", line)
            bad += found
        nul += line.count("\0")
        yield number, line.replace("\0", " ")
    if bad or nul:
        warnings.warn(f"{path}: {bad} bytes that are not UTF-8 and {nul} NULs were replaced")


def document_of(line, path):
    number, text = line
    if text.isspace():
        return
    try:
        text = json.loads(text)["text"]
        yield from (part.strip() for part in text.splitlines() if part.strip())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}:{number}: not a JSON object with a text of at most {LONGEST} "
                         "characters in `text`") from error
    yield ""


# ---- The embedded corpus: the English prose of the documentation that is on every machine ----------

MARKUP = re.compile(r":[\w:+-]+:`~?([^`<]*?)(?:\s*<[^`>]*>)?`|``(.+?)``|`~?([^`<]+?)(?:\s*<[^`>]*>)?`_{0,2}"
                    r"|\*\*([^*\s][^*]*)\*\*|\*([^*\s][^*]*)\*(?!\w)")
CODE = re.compile(r"\s*(>>>|\.\. |\.\.\.|\$ |[-=+|~^#*]{3,}|:\w+|@|\||\w+ = |def |class |import |from \w+ import)")
ITEM = re.compile(r"\s*([-*+o] |\d+[.)] |\w+ ?\([^()]*(?:\([^()]*\)[^()]*)*\): |[*`]*\w+[*`]*: (?=[A-Z]))")
HEADER = re.compile(r"[\w*, ]+ : .*|\w+ ?\([^)]*\):|\w+:|\w+")
COMMON = frozenset("the a an of to in is are be and or for with that this it as if by on not from which "
                   "when can will".split())


def prose(lines):
    """Some lines of a docstring -> a paragraph of plain English, its mark-up removed, or None."""
    text = " ".join(" ".join(lines).split())
    text = MARKUP.sub(lambda found: next(g for g in found.groups() if g is not None), text.replace("::", ":"))
    words = text.split()
    plain = sum(bool(re.fullmatch(r"[(\"']?[A-Za-z][a-z'-]*[.,;:!?)\"']*", word)) for word in words)
    if (len(words) >= 8 and plain >= 0.75 * len(words) and text[0].isalpha() and text[-1] in ".!?:)"
            and sum(word.lower() in COMMON for word in words) >= 0.15 * len(words) and text.isascii()
            and not any(CODE.match(line) for line in lines)
            and not re.search(r"[{}\\|]|%[sdr]|[=<>].*[=<>].*[=<>]", text)):
        return text


def paragraphs(docstring):
    """The paragraphs of prose in a docstring; list items and arguments are paragraphs of their own."""
    code = None                                          # deeper than this is a block of code, after ::
    for block in re.split(r"\n\s*\n", inspect.cleandoc(docstring.expandtabs())):
        lines, unit, depth = block.splitlines(), [], 0
        first = len(block) - len(block.lstrip())
        if not lines or code is not None and first > code:
            continue
        code = first if lines[-1].rstrip().endswith("::") else None
        for line in [*lines, None]:
            item, indent = line and ITEM.match(line), len(line or "") - len((line or "").lstrip())
            if unit and (line is None or item or indent < depth or HEADER.fullmatch(" ".join(unit).strip())):
                yield from filter(None, [prose(unit)])
                unit = []
            if line is not None:
                depth = depth if unit else indent
                unit.append(line[item.end():] if item else line)


def docs_on_this_machine(cache=CACHE):
    """A .jsonl file, made on first use: each paragraph of prose in the documentation of Python, torch
    and numpy once, as {"part": the module, "text": the paragraph}, in the order of the modules."""
    from pydoc_data.topics import topics
    roots = [("python", sysconfig.get_path("stdlib"))] + [
        (name, os.path.dirname(importlib.util.find_spec(name).origin)) for name in ("torch", "numpy")]
    versions = [sys.version] + [open(os.path.join(root, "version.py")).read() for _, root in roots[1:]]
    key = hashlib.sha256(repr((versions, inspect.getsource(sys.modules[__name__]))).encode()).hexdigest()[:12]
    path = os.path.join(cache, f"docs-{key}.jsonl")
    if os.path.isfile(path):
        return path
    sources = [("python.reference", text) for _, text in sorted(topics.items())]
    skip = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "_vendor", "lib2to3",
            "pydoc_data"}
    for part, root in roots:
        for folder, inner, files in os.walk(root):
            inner[:] = sorted(set(inner) - skip)
            for file in sorted(file for file in files if file.endswith(".py")):
                place = os.path.relpath(os.path.join(folder, file), root)[:-3].replace(os.sep, ".")
                with open(os.path.join(folder, file), encoding="utf-8", errors="replace") as source:
                    sources += [(f"{part}.{place}", text) for _, text in re.findall(
                        r'(?s)(?<![\w\'"])[rRuU]?("""|\'\'\')(.*?)\1', source.read())]
    seen = {}
    for part, docstring in tqdm(sources, desc="collecting the documentation", disable=None):
        for text in paragraphs(docstring):
            seen.setdefault(text.lower(), (part, text))
    os.makedirs(cache, exist_ok=True)
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"part": part, "text": text}) + "\n" for part, text in seen.values())
    os.replace(path + ".tmp", path)
    return path


# ---- Token files ----------------------------------------------------------------------------------


def tokenise(corpus, tokenizer, out):
    """Writes the token file `out` and out.json, unless they are there and still true; a TokenFile."""
    files = [os.path.abspath(path) for path in corpus_files(corpus)]
    made_from = {"corpus": [[path, os.path.getsize(path), os.stat(path).st_mtime_ns] for path in files],
                 "tokenizer": tokenizer.digest, "held_out": HELD_OUT}
    if os.path.isfile(f"{out}.json") and os.path.isfile(out):
        if TokenFile(out).made_from == made_from:
            return TokenFile(out)
        print(f"{out} was made from another corpus or tokenizer: making it anew")
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    counts, aside = {"train": 0, "valid": 0}, {"train": f"{out}.tmp", "valid": f"{out}.valid.tmp"}
    try:
        with open(aside["train"], "wb") as train, open(aside["valid"], "wb+") as valid:
            for name, ids in encoded(read_corpus(corpus), tokenizer):
                ids.astype(dtype).tofile({"train": train, "valid": valid}[name])
                counts[name] += len(ids)
            valid.seek(0)
            shutil.copyfileobj(valid, train)
            train.flush(), os.fsync(train.fileno())
        if not counts["valid"]:                          # too few documents for one to be drawn
            counts["valid"] = (counts["train"]) // HELD_OUT
            counts["train"] -= counts["valid"]
            print(f"{len(files)} files, but no document was drawn for validation: "
                  f"the last {counts['valid']} tokens are held out instead")
        os.replace(aside["train"], out)
        with open(f"{out}.json.tmp", "w", encoding="utf-8") as file:
            json.dump({"dtype": dtype.__name__, **counts, "made_from": made_from}, file, indent=1)
        os.replace(f"{out}.json.tmp", f"{out}.json")
    finally:
        for path in (*aside.values(), f"{out}.json.tmp"):
            if os.path.exists(path):
                os.remove(path)
    return TokenFile(out)


def encoded(lines, tokenizer):
    """("train" or "valid", token numbers) of the documents, in batches that keep the memory constant."""
    batch, size, name = [], 0, None

    def flush():
        ids = {"train": [], "valid": []}
        for (where, _), tokens in zip(batch, tokenizer.encode([line for _, line in batch])):
            ids[where] += tokens or [tokenizer.sep]      # an empty line ends a document
        return ((where, np.array(tokens)) for where, tokens in ids.items() if tokens)

    for line in lines:
        if name is None and not line:
            continue                                     # several blank lines are one
        if name is None:                                 # the first line decides for its document
            name = "train" if zlib.crc32(line.encode()) % HELD_OUT else "valid"
        batch.append((name, line))
        size += len(line) + 1
        name = name if line else None
        if size > LONGEST:
            yield from flush()
            batch, size = [], 0
    yield from flush()


class TokenFile:
    """A memory-mapped token file: .train and .valid are its two parts, .made_from what it holds."""

    def __init__(self, path):
        try:
            with open(f"{path}.json", encoding="utf-8") as file:
                facts = json.load(file)
            data = np.memmap(path, {"uint16": np.uint16, "uint32": np.uint32}[facts["dtype"]], mode="r")
            train, valid, self.made_from = facts["train"], facts["valid"], facts["made_from"]
            if len(data) != train + valid or min(train, valid) < 0:
                raise ValueError(f"it has {len(data)} tokens, its .json says {train} + {valid}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FileNotFoundError) as error:
            raise ValueError(f"{path}: not a token file: {type(error).__name__}: {error}") from error
        self.path, self.train, self.valid = path, data[:train], data[train:]


# ---- Masked batches --------------------------------------------------------------------------------


class MaskedBatches:
    """Batches of masked sequences as a function of (seed, step): nothing to remember, so nothing to resume.

    A sequence is [CLS], T - 2 tokens, [SEP]. Each epoch visits each sequence once, in an order of its own.
    """

    def __init__(self, tokens, tokenizer, T, batch_size, seed=0):
        self.tokens, self.tokenizer, self.T, self.batch_size, self.seed = tokens, tokenizer, T, batch_size, seed
        self.count = len(tokens) // (T - 2)              # sequences
        self.order = None, None                          # of the epoch last asked for
        if not self.count:
            raise ValueError(f"the corpus has {len(tokens)} tokens here, not one sequence of {T}")

    def sequences(self, numbers):
        """(B,) numbers of sequences -> ids (B, T)."""
        body = self.tokens[numbers[:, None] * (self.T - 2) + np.arange(self.T - 2)].astype(np.int64)
        if body.max() >= self.tokenizer.vocab_size:
            raise ValueError(f"token {body.max()} in the token file, {self.tokenizer.vocab_size} in the vocabulary")
        edge = np.ones((len(numbers), 1), np.int64)
        return np.concatenate([edge * self.tokenizer.cls, body, edge * self.tokenizer.sep], axis=1)

    def __call__(self, step):
        """ids (B, T) masked, places (M,) into the flattened ids, labels (M,): what stood there."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        numbers = np.empty_like(places)
        for epoch in np.unique(places // self.count):
            if self.order[0] != epoch:
                self.order = epoch, np.random.default_rng([self.seed, 1, epoch]).permutation(self.count)
            here = places // self.count == epoch
            numbers[here] = self.order[1][places[here] % self.count]
        return mask(self.sequences(numbers), self.tokenizer, np.random.default_rng([self.seed, 2, step]))


def mask(ids, tokenizer, rng, rate=0.15):
    """BERT's masking: 15 % of each sequence's tokens, never a special one; of these 80 % become [MASK],
    10 % another token, 10 % stay. ids (B, T) -> ids, places (M,), labels (M,)."""
    special = np.isin(ids, tokenizer.special)
    lot = np.where(special, 2.0, rng.random(ids.shape))
    k = max(1, round(rate * (ids.shape[1] - 2)))         # as many in each: M does not change with the step
    chosen = np.sort(np.argpartition(lot, k, axis=1)[:, :k], axis=1)
    places = (chosen + np.arange(len(ids))[:, None] * ids.shape[1]).ravel()
    places = places[~special.ravel()[places]]            # fewer where a sequence has too few others
    labels = ids.ravel()[places]
    fate, masked = rng.random(len(places)), ids.ravel().copy()
    other = rng.choice(tokenizer.ordinary, len(places))
    masked[places] = np.where(fate < 0.8, tokenizer.mask, np.where(fate < 0.9, other, labels))
    return masked.reshape(ids.shape), places, labels


def main(argv=None):
    parser = argparse.ArgumentParser(description="tokenise a corpus, or learn a vocabulary from one",
                                     allow_abbrev=False)
    parser.add_argument("--corpus", nargs="+", metavar="PATH",
                        help="files and folders (default: the documentation on this machine)")
    parser.add_argument("--tokenizer", metavar="DIR", help="folder or Hugging Face name of a tokenizer")
    parser.add_argument("--train-tokenizer", type=int, metavar="N", help="learn a vocabulary of N tokens instead")
    parser.add_argument("--lowercase", action=argparse.BooleanOptionalAction, default=True,
                        help="whether the learned vocabulary ignores case (default: it does)")
    parser.add_argument("--out", required=True, help="the token file, or the tokenizer's folder, to write")
    args = parser.parse_args(argv)
    if (args.tokenizer is None) == (args.train_tokenizer is None):
        parser.error("give one of --tokenizer and --train-tokenizer")
    if args.train_tokenizer is not None and args.train_tokenizer < 100:
        parser.error(f"--train-tokenizer {args.train_tokenizer}: at least 100 tokens are needed")
    try:
        corpus = args.corpus or [docs_on_this_machine()]
        if args.train_tokenizer:
            made = train_tokenizer(corpus, args.train_tokenizer, args.out, args.lowercase)
            print(f"{args.out}: a vocabulary of {made.vocab_size} tokens")
        else:
            tokenizer = Tokenizer(fetch(args.tokenizer, [("tokenizer.json", "vocab.txt"),
                                                         ("tokenizer_config.json", None)]))
            file = tokenise(corpus, tokenizer, args.out)
            print(f"{args.out}: {len(file.train):,} tokens to train on, {len(file.valid):,} held out")
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
