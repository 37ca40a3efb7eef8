"""Cut the first lines out of the texts and tasks, for a toy run of bench/study.py."""
import glob
import json
import lzma
import os

# How many lines are kept of the files of each ending. All labels in the first 160 lines of
# ChemProt's dev and test sets, which are .jsonl, occur in those of its training set.
LINES = {".xz": 200, ".tsv": 300, ".jsonl": 160}
FILES = ["text/enwiki.txt.xz", "text/books_0?.txt.xz", "glue/*/*.tsv", "ner/*/*.tsv",
         "cls/*/*.jsonl", "qa/*/*.json"]


def write_toy_data(data, folder):
    """Write the beginnings of all files in the folder data, under the same names -> the folder.

    Files that are there already stay as they are.
    """
    if os.path.isdir(folder):
        return folder
    # If this is interrupted, it is done again.
    unfinished = f"{folder}.tmp"
    for pattern in FILES:
        for path in sorted(glob.glob(os.path.join(data, pattern))):
            target = os.path.join(unfinished, os.path.relpath(path, data))
            os.makedirs(os.path.dirname(target), exist_ok=True)
            write_beginning(path, target)
    if not os.path.isdir(unfinished):
        raise ValueError(f"--data {data}: none of the files {' '.join(FILES)} is there")
    os.rename(unfinished, folder)
    return folder


def write_beginning(path, target):
    """Write the beginning of a file; its ending says how it has to be read."""
    ending = os.path.splitext(path)[1]
    if ending == ".json":
        write_first_questions(path, target)
        return
    open_file = open
    if ending == ".xz":
        open_file = lzma.open
    with open_file(path, "rt", encoding="utf-8") as source:
        with open_file(target, "wt", encoding="utf-8") as file:
            for _ in range(LINES[ending]):
                file.write(source.readline())


def write_first_questions(path, target):
    """Write the first paragraphs of a SQuAD file with three questions each.

    All kinds of files keep their format, so that the same commands read them.
    """
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    article = content["data"][0]
    article["paragraphs"] = article["paragraphs"][:4]
    for paragraph in article["paragraphs"]:
        paragraph["qas"] = paragraph["qas"][:3]
    content["data"] = [article]
    with open(target, "w", encoding="utf-8") as file:
        json.dump(content, file)
