"""Names of objects: which a glob matches, and which cannot be used."""

from __future__ import annotations

import pytest

from tests.object_store_server import Faults, ObjectStoreServer, mixed
from tests.transforms.storage.objects import FAULTY, contents, fill, paths
from transforms.input.inputs import list_files
from transforms.storage import files as storage


def test_globs_match_as_on_other_filesystems(server: ObjectStoreServer, bucket: str) -> None:
    fill(server, bucket, ["a.json", "dir/b.json", "dir/c.txt", "dir/deep/d.json", "dir/", "[x].json", "[x]/in.json"])
    assert paths(storage.match([f"{bucket}/*.json"])) == [f"{bucket}/[x].json", f"{bucket}/a.json"]
    assert paths(storage.match([f"{bucket}/dir/*"])) == [f"{bucket}/dir/b.json", f"{bucket}/dir/c.txt"]
    assert paths(storage.match([f"{bucket}/dir/"])) == paths(storage.match([f"{bucket}/dir/*"]))
    assert paths(storage.match([f"{bucket}/dir/**.json"])) == [f"{bucket}/dir/b.json", f"{bucket}/dir/deep/d.json"]
    assert paths(storage.match([f"{bucket}/a.json", f"{bucket}/none"])) == [f"{bucket}/a.json"]
    assert storage.metadata(f"{bucket}/[x].json").size_in_bytes == len("[x].json")
    assert [file.path for file in list_files(f"{bucket}/[x].json").files] == [f"{bucket}/[x].json"]
    assert [file.path for file in list_files(f"{bucket}/[a].json").files] == [f"{bucket}/a.json"]
    storage.delete_directory(f"{bucket}/[x]")
    assert set(contents(server, bucket)) == {"a.json", "dir/b.json", "dir/c.txt", "dir/deep/d.json", "dir/", "[x].json"}


def test_place_holders_of_directories_are_no_files(server: ObjectStoreServer, bucket: str) -> None:
    fill(server, bucket, ["a.json", "dir/in.json", "both"])
    for key in ("empty.json", "dir/", "other/", "both/"):
        server.client().put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=b"")
    found = [file.path for file in list_files(f"{bucket}/*").files]
    assert found == [f"{bucket}/{name}" for name in ("a.json", "both", "empty.json")]
    assert not storage.exists(f"{bucket}/other/")
    assert storage.metadata(f"{bucket}/other") is None


@pytest.mark.parametrize("key", ["dir//in.json", "dir/../in.json", "dir/./in.json"])
def test_names_that_obstore_does_not_take_are_said_in_one_line(
    server: ObjectStoreServer, bucket: str, key: str
) -> None:
    """Not passed over, and not taken for others."""
    fill(server, bucket, [key, "zz.json"])
    with pytest.raises(OSError, match=r"^s3://bucket.*dir/.*rename that object") as error:
        storage.match([f"{bucket}/dir/**"])
    assert "\n" not in str(error.value)
    with pytest.raises(OSError, match=r"names that are empty, \. or \.\. cannot be used between slashes"):
        storage.read_bytes(f"{bucket}/{key}")
    assert paths(storage.match([f"{bucket}/zz*"])) == [f"{bucket}/zz.json"]


def test_more_objects_than_a_page_are_listed_and_deleted(server: ObjectStoreServer, bucket: str) -> None:
    keys = [f"many/{number:04}" for number in range(1_203)]
    fill(server, bucket, [*keys, "many-others/stays"])
    server.faults = mixed(FAULTY, 12)
    found = storage.match([f"{bucket}/many/*"])
    assert paths(found) == [f"{bucket}/{key}" for key in keys]
    assert {metadata.size_in_bytes for metadata in found} == {9}
    server.faults = Faults()
    assert len(storage.match([f"{bucket}/many/12[0]*", f"{bucket}/many/00[0]*"])) == 13
    assert len(server.requests) == 2, "each begins where it may match, and ends where it may not any more"
    server.faults = mixed(FAULTY, 12)
    storage.delete_directory(f"{bucket}/many")
    server.faults = Faults()
    assert set(contents(server, bucket)) == {"many-others/stays"}
