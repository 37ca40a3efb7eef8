"""Text to tokens to masked batches.

    python data.py --corpus wiki/ --tokenizer bert-base-uncased --out wiki.bin     # tokenise once
    python data.py --corpus wiki/ --train-tokenizer 8192 --out my-tokenizer        # a vocabulary

A corpus is any mix of files and folders: .txt (a blank line between documents) and .jsonl (a `text`
field a line), each also as .gz, .bz2 or .xz. It is streamed once, in constant memory, into a flat
file of token numbers, memory-mapped from then on: documents end to end, [SEP] after each, first
those to train on, then those held out. A JSON file beside it says what it was made from.
"""
import argparse
import bz2
import glob
import gzip
import hashlib
import importlib.metadata
import inspect
import io
import json
import lzma
import os
import re
import sys
import sysconfig
import tempfile
import zlib

import numpy as np
import tokenizers
from tqdm import tqdm

CACHE = os.path.join(os.path.expanduser("~"), ".cache", "minialbert")
HELD_OUT = 50                               # one document in so many is for validation
LONGEST = 1 << 20                           # characters of a line, or tokenised at once

def fail(message):
    raise ValueError(message)

def command(name, act):
    """act(), but what is wrong with the user's input is printed in one line; the exit status."""
    try:
        act()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{name}: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2

def read(path, parse=str):
    """parse(the text of a UTF-8 file); ValueError names the file if parse does not take it."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return parse(file.read())
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error

def write(path, parts, shared=False):
    """Writes bytes aside, each process for itself if shared; renames when all are on the disk."""
    aside = f"{path}.{os.getpid()}.tmp" if shared else f"{path}.tmp"
    try:
        with open(aside, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:                # a full disk does not say which one it is
        raise OSError(error.errno or 0, error.strerror or str(error),
                      error.filename or path) from error
    finally:
        if os.path.exists(aside):
            os.remove(aside)

def fetch(name, wanted):
    """A folder as it is, or a Hugging Face name: of its files just those in `wanted`, patterns in
    lists of alternatives, where None is for nothing. ValueError if it cannot be had."""
    if os.path.isdir(name):
        return name
    from huggingface_hub import snapshot_download            # here: slow to import, seldom needed
    try:
        for alternatives in wanted:
            if not any(file is None or glob.glob(file, root_dir=(
                    folder := snapshot_download(name, allow_patterns=file)))
                    for file in alternatives):
                fail(f"it has no {' or '.join(alternatives)}")
    except Exception as error:              # the hub's, or of whatever HTTP library it uses
        raise ValueError(f"{name}: no such folder, and not to be had from the Hugging Face hub: "
                         f"{' '.join(str(error).split())}") from error
    return folder

# ---- Tokenizers ----------------------------------------------------------------------------------
TOKENIZER = [("tokenizer.json", "vocab.txt"), ("tokenizer_config.json", None)]       # for fetch()
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

class Tokenizer:
    """A BERT tokenizer, from the tokenizer.json or vocab.txt in a folder. ValueErrors name them.
    Cased or not is what the files say; where they are silent (BioBERT's are), a vocabulary that
    holds capital letters is cased."""
    def __init__(self, path):
        self.path = path
        file, vocab, config = (os.path.join(path, name) for name in TOKENIZER_FILES)
        if os.path.isfile(file):
            try:
                self.core = tokenizers.Tokenizer.from_file(file)
                self.core.encode("Is it in order? \u2603")      # or it has no word for the unknown
            except Exception as error:      # the Rust library raises nothing narrower
                raise ValueError(f"{file}: not a tokenizer: {error!r}") from error
            self.core.no_padding()
            self.core.no_truncation()
        elif os.path.isfile(vocab):
            file, words = vocab, read(vocab).removesuffix("\n").split("\n")
            if len(set(words)) < len(words):
                raise ValueError(f"{file}: {len(words)} lines, but {len(set(words))} tokens")
            self.core = wordpiece(words) if not os.path.isfile(config) else read(
                config, lambda text: wordpiece(words, **json.loads(text)))
        else:
            raise ValueError(f"{path}: no tokenizer.json or vocab.txt in it")
        ids = self.core.get_vocab()
        if missing := [token for token in SPECIAL if token not in ids]:
            raise ValueError(f"{file}: it has no {' '.join(missing)}")
        self.special = np.array([ids[token] for token in SPECIAL])
        self.pad, self.unk, self.cls, self.sep, self.mask = self.special.tolist()
        self.ordinary = np.setdiff1d(list(ids.values()), self.special)
        self.vocab_size = max(ids.values()) + 1
        if self.vocab_size > 2**24:         # to_str() would list all numbers, in gigabytes
            fail(f"{file}: {self.vocab_size - 1} is no number of a token")
        self.digest = hashlib.sha256(self.core.to_str().encode()).hexdigest()[:16]

    def encode(self, texts):
        """Token numbers of each text, without special tokens."""
        return [e.ids for e in self.core.encode_batch_fast(texts, add_special_tokens=False)]

    def save(self, path):
        """Copies the files it was read from, so that whoever reads them there reads the same."""
        for name in TOKENIZER_FILES:
            source, target = os.path.join(self.path, name), os.path.join(path, name)
            if os.path.isfile(source):
                write(target, [read(source).encode()])
            elif os.path.isfile(target):    # of another tokenizer
                os.remove(target)

def wordpiece(words, do_lower_case=None, strip_accents=None, **others):
    """A BERT tokenizer of these words; the rest is what a tokenizer_config.json may say."""
    if do_lower_case is None:
        do_lower_case = not any(re.match(r"(?!\[.*\]$).*[A-Z]", word) for word in words)
    ids = {word: i for i, word in enumerate(words)}
    core = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
    core.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=do_lower_case,
                                                            strip_accents=strip_accents)
    core.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    core.decoder = tokenizers.decoders.WordPiece()
    core.add_special_tokens([token for token in SPECIAL if token in ids])
    return core

def train_tokenizer(corpus, size, out, lowercase=True):
    """A Tokenizer of `size` tokens, fewer if the corpus has no more, learned and written to out."""
    if not 100 <= size <= 2**20:
        raise ValueError(f"{size} is no size for a vocabulary: from 100 to {2**20} tokens are")
    if found := [name for name in TOKENIZER_FILES[:2] if os.path.exists(os.path.join(out, name))]:
        fail(f"{out}: it has a {found[0]} already")
    core = wordpiece(["[UNK]"], lowercase)
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=size, special_tokens=SPECIAL,
                                                   show_progress=False)
    core.train_from_iterator(filter(None, read_corpus(corpus)), trainer)
    words = sorted(set(core.get_vocab()) - set(SPECIAL))     # the library's order varies by chance
    if not words:
        raise ValueError("there is no text in the corpus")
    os.makedirs(out, exist_ok=True)
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase}
    write(os.path.join(out, "tokenizer_config.json"), [json.dumps(config).encode()])
    write(os.path.join(out, "vocab.txt"), ["\n".join([*SPECIAL, *words, ""]).encode()])
    return Tokenizer(out)

# ---- Reading a corpus ----------------------------------------------------------------------------
CORPUS_FILE = re.compile(r"(?s).*(\.txt|\.jsonl)(\.gz|\.bz2|\.xz)?")
OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}

def corpus_files(corpus):
    """The files of a corpus in a fixed order. ValueError for a path with nothing to read."""
    files = []
    for path in corpus:
        inside = [path] if os.path.isfile(path) else sorted(
            os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
        inside = [file for file in inside if CORPUS_FILE.fullmatch(file)]
        if not inside:
            raise ValueError(f"{path}: no .txt or .jsonl (or one as .gz, .bz2, .xz) there")
        files += inside
    return files

def read_corpus(corpus):
    """Yields the lines of a corpus, and an empty one after each document, with a progress bar.
    NULs and bytes that are not UTF-8 become U+FFFD, which BERT's normaliser drops.
    ValueError, naming file and line, for a damaged file or a line that is not a document."""
    files = corpus_files(corpus)
    with tqdm(total=sum(map(os.path.getsize, files)), unit="B", unit_scale=True, disable=None,
              desc="reading the corpus") as bar:
        for path in files:
            kind, packed = CORPUS_FILE.fullmatch(path).groups()
            begin, bad = bar.n, 0           # bytes on the disk
            with open(path, "rb") as raw:
                text = io.TextIOWrapper(OPENERS[packed](raw) if packed else raw,
                                        encoding="utf-8-sig", errors="surrogateescape")
                try:
                    for number, line in enumerate(iter(lambda: text.readline(LONGEST), ""), 1):
                        bar.update(begin + raw.tell() - bar.n)
                        for part in [line] if kind == ".txt" else document(line, path, number):
                            if not part.isascii() or "\0" in part:
                                part, found = re.subn("[\0\ud800-\udfff]", "\ufffd", part)
                                bad += found
                            yield part.strip()
                except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
                    raise ValueError(f"{path}: damaged or cut short: {error}") from error
            yield ""
            if bad:
                tqdm.write(f"{path}: replaced {bad} NULs or bytes that are not UTF-8", sys.stderr)

def document(line, path, number):
    """The lines of the document in a line of a .jsonl file, and an empty one to end it."""
    try:
        lines = json.loads(line, strict=False)["text"].splitlines() if line.strip() else []
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}:{number}: not a JSON object of at most {LONGEST} characters "
                         "with a string `text`") from error
    return [*filter(str.strip, lines), ""]

# ---- The embedded corpus: the English prose of the documentation that is on every machine --------
EXTRACTION = 2                              # count it up when the rules below change
MARKUP = re.compile(r"""
    :[\w:+-]+:`~?([^`<]*?)(?:\s*<[^`>]*>)?`   # :class:`~torch.Tensor`, :ref:`text <target>`
  | ``(.+?)``                                 # ``code``
  | `~?([^`<]+?)(?:\s*<[^`>]*>)?`_{0,2}       # `name`, `text <target>`_
  | \*\*([^*\s][^*]*)\*\*                     # **bold**
  | \*([^*\s][^*]*)\*(?!\w)                   # *slanted*""", re.VERBOSE)
CODE = re.compile(r"\s*(\.\. |\$ |[-=+|~^#*]{3,}|:\w+|@|\w+ = |def |class |import )")
ITEM = re.compile(r"\s*([-*+o] |\d+[.)] |\w+ ?\(.*?\): |[*`]*\w+[*`]*: (?=[A-Z]))")
HEADER = re.compile(r"[\w*, ]+ : .*|\w+ ?\([^)]*\):|\w+:?")
WORD = re.compile(r"[(\"']?[A-Za-z][a-z'-]*[.,;:!?)\"']*")
COMMON = frozenset("the a an of to in is are be and or for with that this it as if by on not from "
                   "which when can will".split())

def paragraphs(docstring):
    """Yields the lines of each paragraph; a list item or an argument is a paragraph of its own."""
    code = float("inf")                     # deeper than a line that ends in :: is a block of code
    for block in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        first = len(block) - len(block.lstrip())
        if first > code:
            continue
        code = first if block.rstrip().endswith("::") else float("inf")
        lines = []
        for line in block.splitlines():
            item, indent = ITEM.match(line), len(line) - len(line.lstrip())
            if lines and (item or indent < depth or HEADER.fullmatch(" ".join(lines).strip())):
                yield lines
                lines = []
            depth = depth if lines else indent
            lines.append(line[item.end():] if item else line)
        yield lines

def unmarked(lines, code="{}"):
    """The lines of a paragraph as one without mark-up; what that made code is put into `code`."""
    return MARKUP.sub(lambda found: (code if found.lastindex < 4 else "{}").format(
        found[found.lastindex]), " ".join(" ".join(lines).split()).replace("::", ":"))

def prose(lines):
    """The lines of a paragraph -> plain English without its mark-up, or None if it is not that."""
    text = unmarked(lines)
    words = text.split()
    plain = sum(bool(WORD.fullmatch(word)) for word in words)
    common = sum(word.lower() in COMMON for word in words)
    if (len(words) >= 8 and plain >= 0.75 * len(words) and common >= 0.15 * len(words)
            and text.isascii() and text[0].isalpha() and text[-1] in ".!?:)"
            and not any(map(CODE.match, lines))
            and not re.search(r"[{}\\|]|%[sdr]|[=<>].*[=<>].*[=<>]", text)):
        return text

def docstrings(roots):
    """Yields (module, text) from the source of the packages {name: folder}, not importing them."""
    skip = set("site-packages dist-packages test tests idle_test __pycache__ _vendor lib2to3 "
               "pydoc_data".split())
    for package, root in roots.items():
        for folder, inner, names in os.walk(root):
            inner[:] = sorted({*inner} - skip)
            for name in sorted(name for name in names if name.endswith(".py")):
                path = os.path.join(folder, name)
                with open(path, encoding="utf-8", errors="replace") as file:
                    found = re.findall(r'(?s)(?<![\w\'"])[rRuU]?("""|\'\'\')(.*?)\1', file.read())
                module = os.path.relpath(path, root)[:-3].replace(os.sep, ".")
                yield from ((f"{package}.{module}", text) for _, text in found)

def docs_on_this_machine(cache=CACHE):
    """A .jsonl file, made on first use: each paragraph of prose in the documentation of Python,
    torch and numpy once, {"part": its module, "text": the paragraph, "code": where in it names
    were marked as code, [[first character, past the last]]}, in the modules' order."""
    packages = {name: importlib.metadata.distribution(name) for name in ("torch", "numpy")}
    versions = "-".join([sys.version.split()[0], *(found.version for found in packages.values())])
    path = os.path.join(cache, f"docs-{EXTRACTION}-{versions}.jsonl")
    if not os.path.isfile(path):
        from pydoc_data.topics import topics
        os.makedirs(cache, exist_ok=True)
        roots = {"python": sysconfig.get_path("stdlib")}
        roots |= {name: found.locate_file(name) for name, found in packages.items()}
        sources = [("python.reference", topics[topic]) for topic in sorted(topics)]
        sources += docstrings(roots)
        seen = {}
        for part, docstring in tqdm(sources, desc="collecting the documentation", disable=None):
            for lines in paragraphs(docstring):
                if text := prose(lines):
                    pieces = re.split("[\1\2]", unmarked(lines, "\1{}\2"))
                    ends = np.cumsum([len(piece) for piece in pieces]).tolist()
                    row = {"part": part, "text": text, "code": [*zip(ends[::2], ends[1::2])]}
                    seen.setdefault(text.lower(), json.dumps(row) + "\n")
        write(path, (line.encode() for line in seen.values()), shared=True)
    return path

# ---- Token files ---------------------------------------------------------------------------------
def tokenise(corpus, tokenizer, out):
    """The TokenFile `out`, written with its out.json unless they are there and still true."""
    files = [os.path.abspath(path) for path in corpus_files(corpus)]
    made_from = {"corpus": [[f, os.path.getsize(f), os.stat(f).st_mtime_ns] for f in files],
                 "tokenizer": tokenizer.digest, "held_out": HELD_OUT}
    if stale := os.path.exists(out):
        if TokenFile(out).made_from == made_from:
            return TokenFile(out)
        print(f"{out} was made from another corpus or tokenizer: making it anew", file=sys.stderr)
    elif not os.path.basename(out) or (
            os.path.exists(f"{out}.json") and '"made_from"' not in read(f"{out}.json")):
        fail(f"{out!r} will not do as a name, or {out}.json is there and of something else")
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)

    def parts():
        counts = np.zeros(3, int)           # tokens to train on, held out, and unknown
        yield from token_bytes(read_corpus(corpus), tokenizer, dtype, counts)
        *counts, unknown = counts.tolist()
        if unknown > sum(counts) / 2:
            fail(f"{corpus[0]}: most tokens are [UNK]: {tokenizer.path} is of another language")
        if 0 in counts:                     # too few documents for the lot to fall on both sides
            counts = [sum(counts) - sum(counts) // HELD_OUT, sum(counts) // HELD_OUT]
            print(f"{out}: too few documents to hold out one in {HELD_OUT} of them: "
                  f"the last {counts[1]} tokens are held out instead", file=sys.stderr)
        facts = dict(dtype=dtype.name, train=counts[0], valid=counts[1], made_from=made_from)
        if stale:                           # never tokens beside a .json that is not theirs, even
            os.remove(out)                  # after a kill: a .json alone is no token file
        write(f"{out}.json", [json.dumps(facts, indent=1).encode()], shared=True)
    write(out, parts(), shared=True)
    return TokenFile(out)

def open_corpus(corpus, tokenizer, cache=CACHE):
    """The TokenFile of a corpus, made in the folder cache if need be; of None: the embedded one's.
    A corpus of one .bin is such a file. ValueError if another tokenizer made it."""
    corpus = corpus or [docs_on_this_machine(cache)]
    name = hashlib.sha256(repr([corpus, tokenizer.digest]).encode()).hexdigest()[:12] + ".bin"
    tokens = TokenFile(*corpus) if [c[-4:] for c in corpus] == [".bin"] else tokenise(
        corpus, tokenizer, os.path.join(cache, name))
    if tokens.made_from.get("tokenizer", tokenizer.digest) != tokenizer.digest:
        fail(f"{tokens.path} was made with another tokenizer than {tokenizer.path}")
    return tokens

def token_bytes(lines, tokenizer, dtype, counts):
    """Yields what is to be in the token file, in pieces, and adds its tokens up in `counts`."""
    with tempfile.TemporaryFile() as valid:
        for batch in batches_of(lines):
            parts = [], []
            for (line, held_out), ids in zip(batch, tokenizer.encode([line for line, _ in batch])):
                parts[held_out].extend(ids if line else [tokenizer.sep])
            counts += [*map(len, parts), sum(part.count(tokenizer.unk) for part in parts)]
            yield np.array(parts[0], dtype)
            valid.write(np.array(parts[1], dtype))
        if not any(counts):
            raise ValueError("there is no text in the corpus")
        valid.seek(0)
        yield from iter(lambda: valid.read(LONGEST), b"")

def batches_of(lines):
    """Yields lists of (line, whether its document is held out), of about LONGEST characters."""
    batch, size, held_out = [], 0, None
    for line in lines:
        if held_out is None:                # between documents: the first line decides for its own
            if not line:
                continue
            held_out = zlib.crc32(line.encode()) % HELD_OUT == 0
        batch.append((line, held_out))
        size += len(line) + 1
        held_out = held_out if line else None
        if size > LONGEST:
            yield batch
            batch, size = [], 0
    yield batch

class TokenFile:
    """A memory-mapped token file: .train and .valid are its two parts, .made_from what it holds."""
    def __init__(self, path):
        try:
            facts = read(f"{path}.json", json.loads)
            data = np.memmap(path, {"uint16": "u2", "uint32": "u4"}[facts["dtype"]], mode="r")
            self.path, self.made_from = path, {} | facts["made_from"]
            self.train, self.valid = data[:facts["train"]], data[facts["train"]:]
            if (len(self.train), len(self.valid)) != (facts["train"], facts["valid"]):
                raise ValueError(f"it has {len(data)} tokens, but its .json says otherwise")
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            raise ValueError(f"{path}: not a token file, or a damaged one to be deleted: "
                             f"{error!r:.500}") from error

# ---- Masked batches ------------------------------------------------------------------------------
class MaskedBatches:
    """Batches of masked sequences as a function of (seed, step): no state, so nothing to resume.
    A sequence is [CLS], T - 2 tokens, [SEP]. Each epoch visits each once, in its own order."""
    def __init__(self, tokens, tokenizer, T, batch_size, seed=0):
        self.tokens, self.tokenizer, self.T = tokens, tokenizer, T
        self.batch_size, self.seed = batch_size, seed
        self.count = len(tokens) // max(1, T - 2)            # sequences
        self.order = None, None                              # of the epoch last asked for
        if T < 3 or not self.count:
            raise ValueError(f"{len(tokens)} tokens do not make one sequence of {T} with its edges")

    def sequences(self, numbers):
        """(B,) numbers of sequences -> ids (B, T)."""
        ids = np.empty((len(numbers), self.T), np.int64)
        ids[:, 0], ids[:, -1] = self.tokenizer.cls, self.tokenizer.sep
        ids[:, 1:-1] = self.tokens[numbers[:, None] * (self.T - 2) + np.arange(self.T - 2)]
        if ids.max() >= self.tokenizer.vocab_size:
            raise ValueError(f"token {ids.max()} in the token file, but the tokenizer has only "
                             f"{self.tokenizer.vocab_size}: another one made it")
        return ids

    def __call__(self, step):
        """ids (B, T) masked, places (M,) into the flattened ids, labels (M,): what stood there."""
        epochs, places = np.divmod(step * self.batch_size + np.arange(self.batch_size), self.count)
        numbers = np.empty_like(places)
        for epoch in np.unique(epochs):
            if self.order[0] != epoch:
                rng = np.random.default_rng([self.seed, 1, epoch])
                self.order = epoch, rng.permutation(self.count)
            numbers[epochs == epoch] = self.order[1][places[epochs == epoch]]
        rng = np.random.default_rng([self.seed, 2, step])
        return mask(self.sequences(numbers), self.tokenizer, rng)

def mask(ids, tokenizer, rng, rate=0.15):
    """BERT's masking: 15 % of each sequence's tokens, never a special one; of these 80 % become
    [MASK], 10 % another token, 10 % stay. ids (B, T) -> ids, places (M,), labels (M,)."""
    special = np.isin(ids, tokenizer.special)
    lot = np.where(special, 2.0, rng.random(ids.shape))
    k = max(1, round(rate * (ids.shape[1] - 2)))             # of each: M is the same at each step
    chosen = np.sort(np.argpartition(lot, k, axis=1)[:, :k], axis=1)
    places = (chosen + np.arange(len(ids))[:, None] * ids.shape[1]).ravel()
    places = places[~special.ravel()[places]]                # where a sequence has too few others
    labels = ids.ravel()[places]
    fate, masked = rng.random(len(places)), ids.ravel().copy()
    other = rng.choice(tokenizer.ordinary, len(places))
    masked[places] = np.where(fate < 0.8, tokenizer.mask, np.where(fate < 0.9, other, labels))
    return masked.reshape(ids.shape), places, labels

def arguments(argv):
    parser = argparse.ArgumentParser(prog="data.py", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add, parser.error = parser.add_argument, fail
    add("--corpus", nargs="+", metavar="PATH", help="default: the documentation on this machine")
    add("--tokenizer", metavar="DIR", help="folder or Hugging Face name: tokenise with it")
    add("--train-tokenizer", type=int, metavar="N", help="learn a vocabulary of N tokens instead")
    add("--lowercase", action=argparse.BooleanOptionalAction, default=True,
        help="whether the learned vocabulary ignores case (default: it does)")
    add("--out", required=True, metavar="PATH", help="token file or tokenizer's folder to write")
    args = parser.parse_args(argv)
    if (args.tokenizer is None) == (args.train_tokenizer is None):
        fail("give one of --tokenizer and --train-tokenizer")
    return args

def run(args):
    corpus = args.corpus or [docs_on_this_machine()]
    if args.tokenizer is None:
        made = train_tokenizer(corpus, args.train_tokenizer, args.out, args.lowercase)
        print(f"{args.out}: {made.vocab_size} tokens of the {args.train_tokenizer} asked for")
    else:
        tokenizer = Tokenizer(fetch(args.tokenizer, TOKENIZER))
        file = tokenise(corpus, tokenizer, args.out)
        print(f"{args.out}: {len(file.train):,} tokens to train on, {len(file.valid):,} held out")

def main(argv=None):
    return command("data.py", lambda: run(arguments(argv)))

if __name__ == "__main__":
    sys.exit(main())
