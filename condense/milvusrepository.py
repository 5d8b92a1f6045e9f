"""Condensed scenes in a Milvus database, for more of them than one machine's memory: a file (Milvus Lite) or a cluster.

The same queries as of `SceneRepository`, with a shortlist by Milvus's index in place of an exact search in memory.
`pip install 'condense[scale]'` brings the client.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from safetensors.torch import load
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.nn.functional import normalize

from condense.keypoints import KeyPoints
from condense.ranking import pool
from condense.repositoryfiles import Pack
from condense.scenequeries import SceneQueries

LONGEST_NAME, LONGEST_TEXT = 512, 65_535  # bytes of Milvus's text fields
BATCH = 500  # scenes of one insertion


class MilvusRepository(SceneQueries):
    """Scenes by name in the collection `condense_<model>` of a Milvus database.

    Args:
        uri: a file of Milvus Lite, such as "scenes.db", or the address of a cluster, such as "http://host:19530".
        model: fingerprint of the network whose descriptors it holds (`repositoryfiles.fingerprint`).
        dim: length of a descriptor.
        token: "user:password" of a cluster.
        calibration: what `ranking.calibrate` found, by kind of query: "image", "scene".

    Raises:
        ImportError: the client is not installed.
        ValueError: the database holds scenes of other models, and none of this one; or descriptors of another length.
    """

    def __init__(
        self,
        uri: str,
        model: str,
        dim: int = 64,
        token: str = "",
        calibration: dict[str, list[float]] | None = None,
    ) -> None:
        try:
            from pymilvus import MilvusClient
        except ImportError as error:
            raise ImportError("a Milvus repository needs its client: pip install 'condense[scale]'") from error
        self.dim, self.calibration = dim, calibration or {}
        self.collection = f"condense_{model.replace('-', '_')}"
        self._client = MilvusClient(uri, token=token)
        others = [name for name in self._client.list_collections() if name.startswith("condense_")]
        if self.collection not in others:
            if others:
                raise ValueError(
                    f"{uri} was built by model {', '.join(name.removeprefix('condense_') for name in others)}, not by "
                    f"{model}: descriptors of two models do not compare; use another database"
                )
            self._create()
        held = self._stored_dim()
        if held != dim:
            raise ValueError(f"{uri} holds descriptors of length {held}, not {dim}")
        self._client.load_collection(self.collection)

    def _create(self) -> None:
        from pymilvus import DataType

        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=len(_key("")))
        schema.add_field("name", DataType.VARCHAR, max_length=LONGEST_NAME)
        schema.add_field("pooled", DataType.FLOAT_VECTOR, dim=self.dim)
        schema.add_field("pack", DataType.VARCHAR, max_length=LONGEST_TEXT)
        schema.add_field("meta", DataType.VARCHAR, max_length=LONGEST_TEXT)
        index = self._client.prepare_index_params()
        index.add_index("pooled", index_type="AUTOINDEX", metric_type="COSINE")
        self._client.create_collection(self.collection, schema=schema, index_params=index)

    def _stored_dim(self) -> int:
        fields = self._client.describe_collection(self.collection)["fields"]
        return next(int(field["params"]["dim"]) for field in fields if field["name"] == "pooled")

    def __len__(self) -> int:
        return int(self._client.query(self.collection, filter="", output_fields=["count(*)"])[0]["count(*)"])

    def add(self, name: str, keypoints: KeyPoints, meta: dict[str, Any] | None = None) -> None:
        """Adds a scene; see `add_many`."""
        self.add_many([(name, keypoints, meta)])

    def add_many(self, scenes: Iterable[tuple[str, KeyPoints, dict[str, Any] | None]]) -> None:
        """Adds scenes (name, key points, JSON values to keep with it), BATCH at a time.

        Raises:
            ValueError: a name is taken, or a scene has no key points, too many, or such as do not fit. The scenes of
                the batches before are kept.
        """
        batch: list[dict[str, Any]] = []
        for scene in scenes:
            batch.append(self._row(*scene))
            if len(batch) == BATCH:
                self._insert(batch)
                batch = []
        if batch:
            self._insert(batch)

    def _row(self, name: str, keypoints: KeyPoints, meta: dict[str, Any] | None) -> dict[str, Any]:
        if not len(keypoints):
            raise ValueError(f"scene {name!r} has no key points: there is nothing to find it by")
        descriptors = normalize(self._checked(keypoints.descriptors, f"scene {name!r}"), dim=1)
        pooled = pool(descriptors, keypoints.scores, 1)
        row: dict[str, Any] = {
            "key": _key(name),
            "name": name,
            "pooled": pooled[0].tolist(),
            "pack": _packed(Pack.of(keypoints, pooled)),
            "meta": json.dumps(meta or {}),
        }
        for field, most in (("name", LONGEST_NAME), ("pack", LONGEST_TEXT), ("meta", LONGEST_TEXT)):
            if len(row[field].encode()) > most:
                raise ValueError(
                    f"scene {name[:80]!r}: its {field} takes more than {most} bytes, the most that Milvus keeps of a "
                    f"text; it has {len(keypoints)} key points, of which KeyPoints.top keeps the best"
                )
        return row

    def _insert(self, batch: list[dict[str, Any]]) -> None:
        names = [row["name"] for row in batch]
        keys = [row["key"] for row in batch]
        taken = [row["name"] for row in self._client.get(self.collection, ids=keys, output_fields=["name"])]
        taken += [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if taken:
            raise ValueError(
                f"the repository has a scene {taken[0]!r} already: remove it first, or choose another name"
            )
        self._client.insert(self.collection, batch)

    def remove(self, name: str) -> None:
        """Takes a scene out. KeyError: there is none of that name."""
        self._get([name], "name")
        self._client.delete(self.collection, ids=[_key(name)])

    def scene(self, name: str) -> KeyPoints:
        """The key points of a scene. KeyError: no scene has that name."""
        return _unpacked(self._get([name], "pack")[0]).scene(0)

    def meta(self, name: str) -> dict[str, Any]:
        """What was said of a scene when it was added."""
        found: dict[str, Any] = json.loads(self._get([name], "meta")[0])
        return found

    def query_vector(self, vector: Tensor, top: int = 10) -> list[tuple[str, float]]:
        """The scenes with pooled vectors nearest to `vector` [D], a sentence's for one, and their cosines."""
        vector = normalize(self._checked(torch.atleast_2d(vector), "the vector"), dim=1)
        (found,) = self._client.search(self.collection, vector[:1].tolist(), limit=top, output_fields=["name"])
        return [(hit["entity"]["name"], float(hit["distance"])) for hit in found]

    def close(self) -> None:
        """Ends the connection; a file can then be opened elsewhere."""
        self._client.close()

    def _shortlist(self, query: Tensor, scores: Tensor, count: int, leave_out: Collection[str]) -> list[str]:
        found = self.query_vector(pool(query, scores, 1)[0], count + len(leave_out))
        return [name for name, _ in found if name not in leave_out][:count]

    def _descriptors(self, names: Sequence[str]) -> list[Tensor]:
        return [_unpacked(text).descriptors for text in self._get(names, "pack")]

    def _get(self, names: Sequence[str], field: str) -> list[str]:
        rows = self._client.get(self.collection, ids=[_key(name) for name in names], output_fields=["name", field])
        found = {row["name"]: row[field] for row in rows}
        for name in names:
            if name not in found:
                raise KeyError(f"the repository has no scene {name!r}")
        return [found[name] for name in names]


def _key(name: str) -> str:
    """The primary key of a scene: the client writes keys into its query language as they are, quotes and all."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _packed(pack: Pack) -> str:
    tensors = {name: value.contiguous() for name, value in vars(pack).items()}
    return base64.b64encode(to_bytes(tensors)).decode()


def _unpacked(text: str) -> Pack:
    return Pack(**load(base64.b64decode(text)))
