"""What can be configured of files and batches."""

from __future__ import annotations

from proxy.config_types import Count, Seconds, Table


class BatchesConfig(Table):
    """OpenAI's Batch API: files of requests that may wait."""

    file_bytes: Count = 33_554_432
    """of an uploaded file, which with its form must also fit into limits.body_bytes; over it 413 `file_too_large`"""
    key_bytes: Count = 2_147_483_648
    """of all files and results of a key; over it 413 `storage_full`"""
    total_bytes: Count = 17_179_869_184
    """of all files and results; over it 413 `storage_full`"""
    key_files: Count = 1_000
    """files of a key, results included; over it 413 `too_many_files`"""
    batch_lines: Count = 50_000
    """lines of a batch; with more it fails (`too_many_tasks`)"""
    line_bytes: Count = 4_194_304
    """of a line; with a longer one the batch fails (`line_too_long`)"""
    key_batches: Count = 16
    """unfinished batches of a key; over it 429 `too_many_batches`"""
    total_batches: Count = 256
    """unfinished batches; over it 429 `too_many_batches`"""
    key_batches_kept: Count = 1_000
    """finished batches of a key that are remembered; the oldest is forgotten"""
    in_flight: Count = 64
    """calls of all batches at once"""
    attempts: Count = 3
    """of a line whose engine is lost, overloaded or too slow; then it has failed"""
    window_seconds: Seconds = 86_400.0
    """that completion_window "24h" stands for; then what is not done has failed (`batch_expired`)"""
    keep_seconds: Seconds = 2_592_000.0
    """a file is kept unless it says otherwise, and a finished batch is remembered"""
