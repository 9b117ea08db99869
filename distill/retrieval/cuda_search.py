"""Exact top-k search of posting lists on CUDA, in Triton: the rankings and the bits of `search.cpp`.

A program scores a window of passages for a query: it adds one posting list after another, in the order of the query's
terms, to sums in global memory that stay in the caches. The places of a list differ, so its postings are added at once
without atomics; a barrier between lists makes the sums of one visible to the next. A window's sums above the query's
k-th best so far are appended to the query's hits as integers, ordered by score, then by the lower row, so that the
order of their coming, the one thing that atomics decide here, does not matter.

Windows are searched in growing steps, for all queries of a batch: what the first ones find thins out what the later
ones keep. Programs at work at one time read the same window, whose postings the second-level cache holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F

from distill.retrieval.postings import Postings
from distill.run.device import on_device, until_it_fits, upload

WINDOW = 8192  # passages: 32 KiB of sums for each program
TILES = {"POSTINGS": 512, "PASSAGES": 1024}
# Products are rounded before they are added, as on the CPU; loops with a barrier are not to be pipelined.
OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}
PROGRAMS = 8  # at a time on a multiprocessor
_HIT_BYTES = 512 << 20  # of the hits of the queries that are searched together
_QUERIES = 4096  # searched together, at most


@dataclass(frozen=True)
class DeviceIndex:
    """Posting lists on a device: P postings in B blocks over V terms, and W windows, `parts` for each block.

    The windows of a block divide its lists: `table` has where each part of each list begins, a row for each block.
    """

    parts: int
    place: Tensor  # int16 [P]: bits of uint16
    weight: Tensor  # float32 [P]
    table: Tensor  # int32 [B * (V * parts + 1)]: counted from the first posting of the block
    posting: Tensor  # int64 [W]: the first posting of the window's block
    part: Tensor  # int64 [W]: where in `table` the window's part of the first term is
    skipped: Tensor  # int32 [W]: passages of the block before the window
    row: Tensor  # int64 [W]: first passage of the window

    @classmethod
    def of(cls, runs: Sequence[Postings], device: str) -> DeviceIndex:
        """Copy posting lists to a device: 6 bytes per posting, and 4 per term and window."""
        at = torch.device(device)
        parts = max(triton.cdiv(run.width, WINDOW) for run in runs)
        sizes = [len(run.place) for run in runs]
        place = torch.empty(sum(sizes), dtype=torch.int16, device=at)
        weight = torch.empty(sum(sizes), device=at)
        columns = runs[0].vocabulary * parts + 1
        table = torch.empty((sum(len(run.first) - 1 for run in runs), columns), dtype=torch.int32, device=at)
        windows: list[tuple[int, int, int, int]] = []
        posting = row = block = 0
        for run, size in zip(runs, sizes, strict=True):
            place[posting : posting + size] = upload(torch.tensor(run.place.view(np.int16)), at)
            weight[posting : posting + size] = upload(torch.tensor(run.weight), at)
            for number, counts in enumerate(run.counts()):
                first, last = posting + int(run.first[number]), posting + int(run.first[number + 1])
                table[block] = _starts(place[first:last], upload(torch.from_numpy(counts), at), parts)
                passages = min(run.width, run.passages - number * run.width)
                windows += [
                    (first, block * columns + part, part * WINDOW, row + number * run.width + part * WINDOW)
                    for part in range(triton.cdiv(passages, WINDOW))
                ]
                block += 1
            posting, row = posting + size, row + run.passages
        of_windows = torch.tensor(windows, dtype=torch.int64).reshape(-1, 4).to(at)
        first_posting, first_part, skipped, first_row = of_windows.T.contiguous()
        return cls(parts, place, weight, table.view(-1), first_posting, first_part, skipped.int(), first_row)

    def search(self, queries: sparse.csr_matrix, k: int, least: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `InvertedIndex.search`, for k up to the number of passages: rows int64 [n, k] and scores float32 [n, k].

        Memory: 8 bytes for each of the k hits and as many candidates of the queries that are searched together. Fewer
        are, where that is too much. Raises `torch.OutOfMemoryError` if the device has none for a single query.
        """
        at_once = max(1, min(_QUERIES, queries.shape[0], _HIT_BYTES // (8 * _room(k))))

        def hits(at_once: int) -> np.ndarray:
            starts = range(0, queries.shape[0], at_once)
            return np.concatenate(
                [self._hits(queries[i : i + at_once], k, least[i : i + at_once]).cpu().numpy() for i in starts]
            )

        found, _ = until_it_fits(hits, at_once)
        rows = np.where(found > 0, 0xFFFFFFFF - (found & 0xFFFFFFFF), -1)
        return rows, (found >> 32).astype(np.int32).view(np.float32)

    def _hits(self, queries: sparse.csr_matrix, k: int, least: np.ndarray) -> Tensor:
        """The best hits of some queries, int64 [n, k]: bits of the score << 32 | 0xFFFFFFFF - row, or 0 for none."""
        device, n, windows = self.place.device, queries.shape[0], len(self.row)
        indptr, terms, factors, threshold = (
            upload(torch.from_numpy(np.array(array, dtype)), device)
            for array, dtype in (
                (queries.indptr, np.int32),
                (queries.indices, np.int32),
                (queries.data, np.float32),
                (least, np.float32),
            )
        )
        hits = torch.zeros((n, _room(k)), dtype=torch.int64, device=device)
        kept = torch.zeros(n, dtype=torch.int32, device=device)
        slots = _slots(device)
        sums = torch.zeros((slots, WINDOW), device=device)
        first, step = 0, 1
        while first < windows:
            step = min(step, windows - first)
            counts = kept.clone()
            with on_device(device):
                score_windows[(min(slots, n * step),)](
                    self.place,
                    self.weight,
                    self.table,
                    self.posting,
                    self.part,
                    self.skipped,
                    self.row,
                    indptr,
                    terms,
                    factors,
                    threshold,
                    sums,
                    hits,
                    counts,
                    first,
                    n * step,
                    n,
                    self.parts,
                    hits.shape[1],
                    WINDOW=WINDOW,
                    **TILES,
                    **OPTIONS,
                )
            most = int(counts.max())
            if most > hits.shape[1]:  # a single window always has room
                hits.masked_fill_(torch.arange(hits.shape[1], device=device) >= kept[:, None], 0)
                step //= 2
                continue
            if most:
                best = hits[:, :most].topk(min(k, most)).values
                hits[:, :most] = F.pad(best, (0, most - best.shape[1]))
                kept = (best > 0).sum(dim=1, dtype=torch.int32)
                if best.shape[1] == k:
                    threshold = torch.maximum(threshold, (best[:, -1] >> 32).int().view(torch.float32))
            first, step = first + step, 2 * step
        return hits[:, :k]


def _starts(place: Tensor, counts: Tensor, parts: int) -> Tensor:
    """Where each part of each list of a block begins: int32 [V * parts + 1]."""
    term = torch.arange(len(counts), dtype=torch.int32, device=place.device)
    term = torch.repeat_interleave(term, counts, output_size=len(place))
    part = term * parts + torch.div(place.int() & 0xFFFF, WINDOW, rounding_mode="floor")
    parts_of_all = torch.arange(len(counts) * parts + 1, dtype=part.dtype, device=place.device)
    return torch.searchsorted(part, parts_of_all, out_int32=True)


def launch_kernels(device: str) -> None:
    """Search one passage. Raises whatever keeps the kernel from running on a device."""
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise RuntimeError(f"it needs compute capability 8.0, which this GPU ({major}.{minor}) does not have")
    one = sparse.csr_matrix(np.full((1, 1), 2, np.float32))
    rows, scores = DeviceIndex.of([Postings.of(one)], device).search(one, 1, np.zeros(1, np.float32))
    if rows.tolist() != [[0]] or scores.tolist() != [[4.0]]:
        raise RuntimeError(f"the only passage, with score 4, is found at {rows.tolist()}, with score {scores.tolist()}")


def _room(k: int) -> int:
    """The number of hits that a query may have at a time: its best, and those of a step."""
    return k + 2 * max(k, WINDOW)


def _slots(device: torch.device) -> int:
    """The number of programs that are started, each with memory for the sums of a window."""
    if device.type != "cuda":
        return 3  # in Triton's interpreter
    return PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit(do_not_specialize=["first", "items", "queries"])
def score_windows(
    place,
    weight,
    table,
    posting,
    part,
    skipped,
    row,
    indptr,
    terms,
    factors,
    threshold,
    sums,
    hits,
    counts,
    first,
    items,
    queries,
    parts,
    room,
    WINDOW: tl.constexpr,
    POSTINGS: tl.constexpr,
    PASSAGES: tl.constexpr,
):
    # one program: windows from `first` for queries, item by item; sums float32 [programs, WINDOW], zero at both ends
    program = tl.program_id(0)
    own = sums + program * WINDOW
    for item in range(program, items, tl.num_programs(0)):
        window = first + item // queries
        query = item % queries
        before = tl.load(skipped + window)
        of_block = tl.load(posting + window)
        starts = table + tl.load(part + window)
        touched = 0
        for i in range(tl.load(indptr + query), tl.load(indptr + query + 1)):
            at = starts + tl.load(terms + i) * parts
            factor = tl.load(factors + i)
            begin = tl.load(at)
            end = tl.load(at + 1)
            for from_posting in range(begin, end, POSTINGS):
                each = from_posting + tl.arange(0, POSTINGS)
                there = each < end
                to = (tl.load(place + of_block + each, mask=there, other=0).to(tl.int32) & 0xFFFF) - before
                product = factor * tl.load(weight + of_block + each, mask=there, other=0.0)
                tl.store(own + to, tl.load(own + to, mask=there, other=0.0) + product, mask=there)
            if begin < end:
                touched += end - begin
                # bar.sync orders what the program's threads have stored before what they load next (PTX ISA,
                # "barrier"): the next list may have the same places in other threads
                tl.debug_barrier()
        if touched > 0:
            least = tl.load(threshold + query)
            first_row = tl.load(row + window)
            for from_place in range(0, WINDOW, PASSAGES):
                each = from_place + tl.arange(0, PASSAGES)
                score = tl.load(own + each)
                tl.store(own + each, tl.zeros([PASSAGES], tl.float32))
                above = score > least
                to = tl.atomic_add(counts + query + tl.zeros([PASSAGES], tl.int32), 1, mask=above, sem="relaxed")
                hit = (score.to(tl.int32, bitcast=True).to(tl.int64) << 32) | (0xFFFFFFFF - (first_row + each))
                tl.store(hits + query.to(tl.int64) * room + to, hit, mask=above & (to < room))
            tl.debug_barrier()  # the zeros, before the next item's sums
