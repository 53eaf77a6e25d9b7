"""Video files to shards: `ivj ingest --help`.

sources       what to ingest: folders here, `tables` for CSV, TSV and JSONL
              (`path_template`: their file names), `lists` for files without a
              header, `tfds` for prepared TFDS datasets
labels        the class list, and the rows that do not fit it
plan          which clip goes into which shard; `estimate` says how many shards
decode        one video to frames; `container` opens it, `encode` encodes
media         the clip behind a row: a video, a folder of `frames`, a TFDS example
work          one shard: the unit of work, of restart and of failure
pool          processes for the shards (`worker`), and what to do when one dies
beam          the same shards on an Apache Beam runner
run           all of it, with `lock`, `losses` and `progress`
"""
