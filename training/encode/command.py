"""`talkforge encode`: a cache of latents and conditions beside the shards, for training.

    shards/train-000000.tar  ->  latents/train-000000.tar   `<key>.latents.npz` of each sample
                                 latents/train-000000.json  written last, which commits the tar file

Spans begin at fixed frames, evenly spread over each clip. A shard whose cached latents are current is passed
over.
"""

from __future__ import annotations

import copy
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from talkforge.pipeline import snapshots
from talkforge.pipeline.dataset import exclusive
from talkforge.pipeline.snapshots import Snapshot
from talkforge.pipeline.store import Store
from talkforge.pipeline.tombstones import check_not_erasing
from talkforge.schemas import extras
from talkforge.schemas.checksum import sha256_of
from talkforge.schemas.errors import CommandError, DatasetError, RunError
from talkforge.schemas.sample import ShardManifest
from talkforge.schemas.tar import tar_writer, write_sample
from talkforge.training.config import TrainConfig, check_base, load_train_config
from talkforge.training.data import latent_cache
from talkforge.training.data.latent_cache import LatentsManifest
from talkforge.training.data.shards import dataset_info
from talkforge.training.data.stream import SkippedSample
from talkforge.training.encode.clips import COVER, ClipEncoder, EncodedClip, npz, text_dim
from talkforge.training.wan.base import takes_condition
from talkforge.training.wan.codec import load_codec, training_dtype
from talkforge.training.wan.encoders import load_encoders


@dataclass
class EncodeResult:
    """Progress of the work, and its result in the end.

    Attributes:
        shards: shards of the data set.
        done: shards that have latents.
        kept: shards that had current latents before.
        clips: clips that were encoded.
        spans: spans that were encoded.
        skipped: number of samples that were skipped, by reason.
        skipped_keys: reason of each, by key.
        seconds: since the beginning.
    """

    shards: int
    done: int = 0
    kept: int = 0
    clips: int = 0
    spans: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    skipped_keys: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def line(self) -> str:
        """All of it in one line."""
        kept = f" ({self.kept} were there)" if self.kept else ""
        skipped = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items())) or "none"
        return (
            f"shards {self.done}/{self.shards}{kept}, clips {self.clips}, spans {self.spans}, "
            f"left out: {skipped}, {self.seconds:.0f} s"
        )


Show = Callable[[EncodeResult], None]


def run_encode(
    dataset: str,
    config_name: str | Path | None,
    settings: Sequence[str],
    spans: int,
    show: Show,
    part: tuple[int, int] = (1, 1),
) -> EncodeResult:
    """`encode_dataset` with the configuration of a training run.

    Args:
        dataset: folder or fsspec URI.
        config_name: name of a preset, or path of a YAML file. None means the defaults.
        settings: each `section.key=value` overrides one value.
        spans: spans cached of each clip, or `COVER`.
        show: called after every sample and shard.
        part: see `encode_dataset`.
    """
    config = load_train_config(config_name, list(settings))
    return encode_dataset(dataset, config, spans_per_clip=spans, progress=show, part=part)


def parsed_spans(text: str) -> int:
    """Spans of a clip as the command line names them: a number, or 'cover'.

    Raises:
        CommandError: neither.
    """
    if text == "cover":
        return COVER
    if not text.isdecimal() or int(text) < 1:
        raise CommandError(f"--spans: expected 1 or more, or cover, found {text}")
    return int(text)


def parsed_part(text: str) -> tuple[int, int]:
    """Which of how many machines this is, as 'i/n' with i from 1 to n.

    Raises:
        CommandError: anything else.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    part = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= part[0] <= part[1]:
        raise CommandError(f"--shards: expected i/n with i from 1 to n, such as 1/4, found {text}")
    return part


def encode_dataset(
    dataset: str,
    config: TrainConfig,
    *,
    spans_per_clip: int = 1,
    progress: Show = lambda _: None,
    devices: Sequence[str] = (),
    part: tuple[int, int] = (1, 1),
) -> EncodeResult:
    """Encode every shard of a data set for runs with this `config`, or every n-th of them.

    Args:
        dataset: folder or fsspec URI.
        config: of the training runs that shall use the latents.
        spans_per_clip: spans cached of each clip, fewer where it has no more, or `COVER`.
        progress: called after every sample and shard.
        devices: devices, each of which encodes shards of its own. Without any, all GPUs are used, or the CPU
            where there is none.
        part: (i, n): the i-th of n machines, each of which encodes every n-th shard. They do not keep each
            other out, and nothing else may write to the data set meanwhile.

    Raises:
        CommandError: there are no shards, or the codec is too cheap to be cached.
        ModelError: weights are missing.
        DatasetError: a manifest, or the first sample, cannot be read.
        RunError: the latents cannot be written, or a device's memory does not hold a span.
    """
    if config.codec.kind != "wan":
        raise CommandError(f"codec.kind {config.codec.kind}: needs no cache, it costs less than reading one")
    check_base(config)
    if config.data.decoder == "decord":
        extras.require("decord", "data.decoder=decord")
    store = Store(dataset)
    snapshot = snapshots.current(store)
    shards = _shards(store, snapshot)
    info = dataset_info([(_url(store, snapshot, shard), shard) for shard in shards], dataset)
    width, condition = text_dim(config), takes_condition(config.model.base)
    number, parts = part
    with exclusive(store) if parts == 1 else nullcontext():
        if parts == 1:
            store.sweep()
            _remove_stale(store, shards)
        else:
            check_not_erasing(store)
            shards = shards[number - 1 :: parts]
        places = [torch.device(device) for device in devices or _devices()]
        codec = load_codec(config, training_dtype(config, places[0]))
        work = _Work(
            store, snapshot, config, spans_per_clip, codec.sha256, condition, shards, progress, parts > 1
        )
        if work.waiting:  # the other encoders are large, and are loaded only where there is work
            codecs = [codec, *(copy.deepcopy(codec) for _ in places[1:])]
            work.run(
                [
                    ClipEncoder(
                        config,
                        info,
                        spans_per_clip,
                        load_encoders(config, width, device, codec=own, takes_condition=condition),
                        device,
                    )
                    for device, own in zip(places, codecs, strict=True)
                ]
            )
        return work.result


def _shards(store: Store, snapshot: Snapshot) -> list[ShardManifest]:
    if not snapshot.shards:
        raise CommandError(f"{store.root}: no shards here (expected shards/train-000000.tar and its .json)")
    return [shard for shard in snapshot.shards if shard.count]


def _url(store: Store, snapshot: Snapshot, shard: ShardManifest) -> str:
    return f"{store.root.rstrip('/')}/{snapshot.tar(shard)}"


def _devices() -> list[str]:
    return [f"cuda:{k}" for k in range(torch.cuda.device_count())] or ["cpu"]


def _remove_stale(store: Store, shards: Sequence[ShardManifest]) -> None:
    """Remove latents whose shards are gone, manifests first."""
    names = {shard.name for shard in shards}
    stale = [name for name in store.list(latent_cache.FOLDER) if Path(name).stem not in names]
    for name in sorted(stale, key=lambda name: (name.endswith(".tar"), name)):
        store.delete(name)


def _files(shard: ShardManifest) -> tuple[str, str]:
    """Names of a shard's latents and of their manifest."""
    return f"{latent_cache.FOLDER}/{shard.name}.tar", f"{latent_cache.FOLDER}/{shard.name}.json"


class _StoppedError(Exception):
    """Another encoder has failed, so this one stops."""


class _Work:
    """The shards of one call, distributed over encoders.

    Attributes:
        waiting: shards without current latents.
        result: progress so far.
    """

    def __init__(
        self,
        store: Store,
        snapshot: Snapshot,
        config: TrainConfig,
        spans_per_clip: int,
        codec_sha256: str,
        condition: bool,
        shards: Sequence[ShardManifest],
        show: Show,
        shared: bool,
    ) -> None:
        self._store, self._snapshot, self._config = store, snapshot, config
        self._spans_per_clip, self._codec_sha256, self._show = spans_per_clip, codec_sha256, show
        self._condition, self._shared = condition, shared
        self._begun_s = time.monotonic()
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self.waiting = [shard for shard in shards if not self._is_current(shard)]
        kept = len(shards) - len(self.waiting)
        self.result = EncodeResult(len(shards), done=kept, kept=kept)

    def run(self, encoders: Sequence[ClipEncoder]) -> None:
        """Have each encoder take the next shard when it is done with one. An error of one ends them all.

        Args:
            encoders: one for each device.
        """
        with ThreadPoolExecutor(len(encoders)) as pool:
            working = [pool.submit(self._work, encoder) for encoder in encoders]
            try:
                for one in working:
                    one.result()
            finally:
                self._stopped.set()

    def _work(self, encoder: ClipEncoder) -> None:
        try:
            while shard := self._next():
                self._encode(shard, encoder)
        except _StoppedError:
            return
        except BaseException:
            self._stopped.set()
            raise

    def _next(self) -> ShardManifest | None:
        with self._lock:
            return self.waiting.pop(0) if self.waiting else None

    def _encode(self, shard: ShardManifest, encoder: ClipEncoder) -> None:
        """Latents of one shard, tar file first, manifest last."""
        tar, described = _files(shard)
        self._store.delete(described)  # the old manifest must not vouch for the new tar file
        with self._store.writing(tar) as path:
            keys, lost = self._write(path, shard, encoder)
            size = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        written = self._manifest(shard).model_copy(update={"keys": tuple(keys), "lost": lost, **size})
        self._store.write(described, json.dumps(written.model_dump(mode="json"), indent=1).encode())
        if self._shared:
            self._take_back_if_old(shard)
        with self._counting() as result:
            result.done += 1

    def _take_back_if_old(self, shard: ShardManifest) -> None:
        """Remove latents of a snapshot that is no longer current: nobody was kept from changing it."""
        if snapshots.current(self._store).number != self._snapshot.number:
            for name in reversed(_files(shard)):
                self._store.delete(name)
            raise RunError(f"{self._store.root}: got another snapshot meanwhile; run the same command again")

    def _manifest(self, shard: ShardManifest) -> LatentsManifest:
        """Manifest of latents that are made now, without their checksum, size and keys."""
        config = self._config
        return LatentsManifest(
            name=shard.name,
            shard_sha256=shard.sha256,
            sha256="",
            bytes=0,
            keys=(),
            lost=0,
            num_frames=config.data.num_frames,
            shorter_spans=config.data.shorter_spans,
            sizes=config.data.sizes,
            decoder=config.data.decoder,
            spans_per_clip=self._spans_per_clip,
            base=config.model.base,
            codec=config.codec.kind,
            codec_sha256=self._codec_sha256,
            text=config.codec.text,
            image=config.codec.image,
            condition=self._condition,
        )

    def _is_current(self, shard: ShardManifest) -> bool:
        """Whether the latents are current. They never are where samples were lost."""
        tar, described = _files(shard)
        try:
            found = latent_cache.parse_manifest(self._store.read(described), described)
            own = {"sha256": found.sha256, "bytes": found.bytes, "keys": found.keys}
            own["condition"] = found.condition or self._condition  # one that nobody reads does no harm
            wanted = self._manifest(shard).model_copy(update=own)
            return wanted == found and self._store.size(tar) == found.bytes
        except DatasetError:
            return False

    def _write(self, path: Path, shard: ShardManifest, encoder: ClipEncoder) -> tuple[list[str], int]:
        """Write the tar file. Returns the keys in it, and how many samples could not be read."""
        keys: list[str] = []
        count = 0
        with (
            self._store.reporting_errors("write", _files(shard)[0]),
            path.open("wb") as stream,
            tar_writer(stream) as out,
        ):
            for found in encoder.shard(_url(self._store, self._snapshot, shard)):
                if self._stopped.is_set():
                    raise _StoppedError
                count += 1
                if isinstance(found, EncodedClip):
                    write_sample(out, found.key, {"latents.npz": npz(found.arrays)})
                    keys.append(found.key)
                self._count(found)
        if lost := shard.count - count:
            self._count(
                SkippedSample(
                    shard.name, "lost", f"{shard.name}: {lost} of {shard.count} samples are lost", lost
                )
            )
        return keys, lost

    def _count(self, found: EncodedClip | SkippedSample) -> None:
        with self._counting() as result:
            if isinstance(found, SkippedSample):
                found.log()
                result.skipped[found.reason] += found.count
                result.skipped_keys[found.key] = found.reason
            else:
                result.clips += 1
                result.spans += len(found.arrays["first_frame"])

    @contextmanager
    def _counting(self) -> Iterator[EncodeResult]:
        """The result, to be changed by one thread at a time, and then shown."""
        with self._lock:
            yield self.result
            self.result.seconds = time.monotonic() - self._begun_s
            self._show(self.result)
