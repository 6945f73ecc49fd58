"""Published checkpoints -> a state dict: torchMoji's `.bin`, DeepMoji's `.hdf5` and `.ckpt`. Writes nothing.

A checkpoint is a stranger's file. Its content decides its format, not its name; a pickle goes through torch's
restricted reader alone, HDF5 is not followed to another file, and the weights may not be larger than the file they
came in. `pipelines.convert` makes a bundle of the result.
"""

from __future__ import annotations

import io
import math
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor

from torchmoji_core.bundle_files import ShortReads, read_uri
from torchmoji_core.errors import LONGEST_REASON, InputError, first_line
from torchmoji_core.files import read_limited
from torchmoji_core.limits import MODEL_LIMITS, model_limit
from torchmoji_core.locations import is_remote, local_path
from torchmoji_core.model import FLOATS, Dimensions, check_weights, dimensions_of, pack_ids
from torchmoji_core.names import shown
from torchmoji_core.pickles import check_pickle
from torchmoji_core.tensorflow_files import DATA_SUFFIX, INDEX_SUFFIX, MAGIC, read_tensors

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from torchmoji_core.model import TorchMoji
    from torchmoji_core.tokenizer import Tokenizer

TORCH_ZIP, TORCH_LEGACY, KERAS_HDF5, TENSORFLOW = "torch zip", "torch legacy", "keras hdf5", "tensorflow"

PUBLISHED = Dimensions(vocabulary=50_000, embedding=256, hidden=512, classes=64)

KNOWN_ANSWERS: Mapping[str, tuple[int, ...]] = {
    "I love mom's cooking": (36, 4, 8, 16, 47),
    "I love how you never reply back..": (1, 19, 55, 25, 46),
    "I love cruising with my homies": (31, 6, 30, 15, 13),
    "I love messing with yo mind!!": (54, 44, 9, 50, 49),
    "I love you and now you're just gone..": (46, 5, 27, 35, 34),
    "This is shit": (55, 32, 27, 1, 37),
    "This is the shit": (48, 11, 6, 31, 9),
}
"""The five most likely classes, most likely first, that the published weights give."""
KNOWN_EMBEDDING = (-0.023, 0.021, -0.037, -0.001, -0.005)
"""First channels of the mean embedding of the known answers' texts, to three decimals."""
_KNOWN_MAXLEN = 30

LARGEST_FILE = 8 * MODEL_LIMITS["weights"] + (64 << 20)
"""Bytes of a checkpoint, of a model that has the most weights that one may have by default, all of them float64."""
_REMEDY = "give torchMoji's pytorch_model.bin, DeepMoji's deepmoji_weights.hdf5 or its emoji.ckpt.index"
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_ZIP_SIGNATURE = b"PK\x03\x04"
_LEGACY_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # behind the two bytes that give the pickle's protocol
_LEGACY_PICKLES = 5
"""A signature, the version, the machine, the state and the names of storages; their values follow."""
_PICKLE = "data.pkl"
_KERAS_ARRAYS = {"embedding": 1, "bi_lstm_0": 6, "bi_lstm_1": 6, "attlayer": 1, "softmax": 2}
_KERAS_1_ARRAYS = 24
_TENSORFLOW_LAYERS = {
    "embedding": ["embedding/embeddings"],
    **{
        f"bi_lstm_{number}": [
            f"bi_lstm_{number}/{direction}_lstm_{number + 1}/{array}"
            for direction in ("forward", "backward")
            for array in ("kernel", "recurrent_kernel", "bias")
        ]
        for number in (0, 1)
    },
    "attlayer": ["attlayer/attlayer_W"],
    "softmax": ["softmax/kernel", "softmax/bias"],
}
_TENSORFLOW_NAMES = {name for names in _TENSORFLOW_LAYERS.values() for name in names}
_MOST_NAMES = 100
_OUTPUT_WEIGHT, _OUTPUT_BIAS = "output_layer.0.weight", "output_layer.0.bias"


def read_checkpoint(source: str) -> dict[str, Tensor]:
    """Read a published checkpoint.

    Args:
        source: a path, or a URI (https, s3, gs, az).

    Returns:
        The weights under the published torchMoji names; float32, contiguous, finite, of shapes that fit together. A
        binary classifier's one output, of a sigmoid, is two: 1 - p and p, as of the labels 0 and 1.

    Raises:
        InputError: in one line that names the file, if it is not such a checkpoint.
    """
    return parse_checkpoint(fetch_checkpoint(source), source)


def fetch_checkpoint(source: str) -> bytes:
    """The bytes of a checkpoint at a path or URI.

    Raises:
        InputError: if there is no such file, it cannot be read, or it is larger than any model may be.
    """
    limit = LARGEST_FILE * model_limit("weights") // MODEL_LIMITS["weights"]
    if is_remote(source):
        return read_uri(source, limit)
    return read_limited(f"checkpoint {source}", local_path(source), limit)


def checkpoint_format(content: bytes, source: str) -> str:
    """TORCH_ZIP, TORCH_LEGACY, KERAS_HDF5 or TENSORFLOW (of its index), by the content.

    Raises:
        InputError: if it is none of them, naming what it seems to be.
    """
    start = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    if content.startswith(_HDF5_SIGNATURE):
        return KERAS_HDF5
    if content.startswith(_ZIP_SIGNATURE):
        return TORCH_ZIP
    if content[2:].startswith(_LEGACY_MAGIC):
        return TORCH_LEGACY
    if content.endswith(MAGIC):
        return TENSORFLOW
    if not content:
        raise InputError(f"checkpoint {source}: is empty; download it again")
    if start.startswith(b"<"):
        raise InputError(f"checkpoint {source}: is a web page (HTML); the download link needs dl=1 rather than dl=0")
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"checkpoint {source}: is a Git LFS pointer, not the file itself; run git lfs pull")
    if content.startswith(b"\x80"):
        raise InputError(
            f"checkpoint {source}: is a pickle that torch.save did not write, or only its beginning; "
            f"refused, and nothing in it was run; {_REMEDY}"
        )
    raise InputError(f"checkpoint {source}: is neither a file of torch.save nor HDF5; {_REMEDY}")


def parse_checkpoint(content: bytes, source: str, data: bytes | None = None) -> dict[str, Tensor]:
    """As `read_checkpoint`, for bytes at hand; `source` names them in errors.

    The data file of an index of TensorFlow's is `data`, or else is read from beside the source.
    """
    form = checkpoint_format(content, source)
    if form == TENSORFLOW:
        state = _read_tensorflow(content, source, data)
    else:
        state = _read_keras(content, source) if form == KERAS_HDF5 else _read_torch(content, source)
    try:
        dimensions_of(state)
    except InputError as error:
        raise InputError(f"checkpoint {source}: {first_line(error, LONGEST_REASON)}; {_REMEDY}") from None
    # Copied, because entries of a file may share one storage, which safetensors would not write.
    result = {
        name: torch.empty(tensor.shape, dtype=torch.float32).copy_(tensor.detach()) for name, tensor in state.items()
    }
    try:
        check_weights(result)
    except InputError as error:
        raise InputError(f"checkpoint {source}: {error}; download it again") from None
    if len(result[_OUTPUT_BIAS]) == 1:
        for name in (_OUTPUT_WEIGHT, _OUTPUT_BIAS):  # sigmoid(z) = softmax(0, z)[1]
            result[name] = torch.cat((torch.zeros_like(result[name]), result[name]))
    return result


def _read_torch(content: bytes, source: str) -> dict[str, Tensor]:
    """Tensors of any float type and shape, all together no larger than the content."""
    try:
        if content.startswith(_ZIP_SIGNATURE):
            check_archive(io.BytesIO(content))
        else:
            file = io.BytesIO(content)
            for _ in range(_LEGACY_PICKLES):
                check_pickle(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on a file that is then refused: its error shall be one line
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except InputError as error:
        raise InputError(f"checkpoint {source}: {first_line(error, LONGEST_REASON)}") from None
    except Exception as error:
        # torch's advice on a pickle it refuses is to read it without restriction: not for a stranger's file.
        reason = (
            "a malformed pickle" if isinstance(error, pickle.UnpicklingError) else first_line(error, LONGEST_REASON)
        )
        raise InputError(f"checkpoint {source}: damaged or incomplete ({reason}); download it again") from None
    if not isinstance(state, dict):
        raise InputError(f"checkpoint {source}: holds a {type(state).__name__}, not a state dict; {_REMEDY}")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise InputError(
                f"checkpoint {source}: entry {shown(name)} is a {type(tensor).__name__}; "
                "a state dict holds tensors by name: save the model's state_dict() and nothing else"
            )
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
        if not plain or tensor.dtype not in FLOATS:
            kind = tensor.dtype if plain else "no plain tensor"
            raise InputError(f"checkpoint {source}: {shown(name)} is {kind}; save float16, float32 or float64 tensors")
    if sum(tensor.numel() * tensor.element_size() for tensor in state.values()) > len(content):
        raise InputError(f"checkpoint {source}: claims more weights than the file holds; download it again")
    return dict(state)


def check_archive(file: IO[bytes]) -> None:
    """Check sizes, check sums and what the pickle is made of, which torch's own reader does not.

    Raises:
        InputError: without the file's name, if torch.save did not write the archive or it was damaged since.
    """
    size = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(cast(IO[bytes], ShortReads(file))) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise InputError(f"is a compressed archive, which torch.save never writes; {_REMEDY}")
        if sum(member.file_size for member in members) > size:
            raise InputError("claims more weights than the file holds; download it again")
        if damaged := archive.testzip():
            raise InputError(f"damaged ({damaged!r} does not match its check sum); download it again")
        for member in members:
            if member.filename.lower().endswith(_PICKLE):  # torch's reader takes it in any case
                check_pickle(io.BytesIO(archive.read(member)))


def _read_keras(content: bytes, source: str) -> dict[str, Tensor]:
    """Tensors under our names, float32, shapes as they follow from the file's."""
    try:
        import h5py
    except ImportError:
        raise InputError(f"checkpoint {source}: HDF5 needs h5py; install this package's extra 'hdf5'") from None
    import numpy as np

    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            datasets = _keras_datasets(file if "layer_names" in file.attrs else _member(file, "model_weights"))
            claimed = sum(
                math.prod(dataset.shape) * dataset.dtype.itemsize for layer in datasets.values() for dataset in layer
            )
            if claimed > len(content):
                raise InputError("claims more weights than the file holds; download it again")
            with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite, and is refused as such
                arrays = {
                    name: [np.asarray(dataset[()], dtype=np.float32) for dataset in layer]
                    for name, layer in datasets.items()
                }
    except InputError as error:
        raise InputError(f"checkpoint {source}: {first_line(error, LONGEST_REASON)}") from None
    except Exception as error:
        raise InputError(
            f"checkpoint {source}: damaged or incomplete ({first_line(error, LONGEST_REASON)}); download it again"
        ) from None
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in _rename(arrays).items()}


def _read_tensorflow(index: bytes, source: str, data: bytes | None) -> dict[str, Tensor]:
    """Tensors under our names; DeepMoji's port to TensorFlow kept the layers of Keras."""
    import numpy as np

    if data is None:
        if not source.endswith(INDEX_SUFFIX):
            raise InputError(
                f"checkpoint {source}: is an index of TensorFlow's: call it NAME.index, its data NAME.data-*"
            )
        data = fetch_checkpoint(source.removesuffix(INDEX_SUFFIX) + DATA_SUFFIX)
    try:
        tensors = read_tensors(index, data)
    except InputError as error:
        raise InputError(f"checkpoint {source}: {first_line(error, LONGEST_REASON)}") from None
    missing, extra = sorted(_TENSORFLOW_NAMES - tensors.keys()), sorted(tensors.keys() - _TENSORFLOW_NAMES)
    if missing or extra:
        raise InputError(
            f"checkpoint {source}: not the tensors of a DeepMoji model: missing {missing[:3]}, "
            f"unknown {shown(extra[:3])}; {_REMEDY}"
        )
    layers = {layer: [tensors[name] for name in names] for layer, names in _TENSORFLOW_LAYERS.items()}
    return {name: torch.from_numpy(np.array(array)) for name, array in _rename(layers).items()}


def _keras_datasets(root: Any) -> dict[str, list[Any]]:
    """The five layers' h5py datasets, in the file's order of weights; float, and stored in this file.

    Raises:
        InputError: without the file's name, if layers or arrays are missing, too many, or not as Keras writes them.
    """
    groups = {name: _member(root, name) for name in _names(root, "layer_names")}
    weights = {name: names for name, group in groups.items() if (names := _names(group, "weight_names"))}
    missing, extra = sorted(_KERAS_ARRAYS.keys() - weights.keys()), sorted(weights.keys() - _KERAS_ARRAYS.keys())
    if missing or extra:
        raise InputError(f"not the layers of a DeepMoji model: missing {missing}, unknown {extra[:3]}; {_REMEDY}")
    for name, expected in _KERAS_ARRAYS.items():
        found = len(weights[name])
        if found != expected and found == _KERAS_1_ARRAYS:
            raise InputError(f"layer {name!r} has 24 arrays, as of Keras 1; load and save the weights with Keras 2")
        if found != expected:
            raise InputError(f"layer {name!r} has {found} arrays, expected {expected} as of Keras 2; {_REMEDY}")
    datasets = {name: [_member(groups[name], path) for path in weights[name]] for name in _KERAS_ARRAYS}
    for layer in datasets.values():
        for dataset in layer:
            _check_dataset(dataset)
    return datasets


def _names(group: Any, attribute: str) -> list[str]:
    """The strings of an attribute of a group."""
    if attribute not in group.attrs:
        raise InputError(f"has no attribute {attribute!r}, which Keras' save_weights writes; {_REMEDY}")
    shape = group.attrs.get_id(attribute).shape
    if math.prod(shape) > _MOST_NAMES:  # each may be a long text, and all of them the same one
        raise InputError(f"its attribute {attribute!r} has {math.prod(shape):,} names; {_REMEDY}")
    values = group.attrs[attribute].ravel().tolist()
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _member(group: Any, path: str) -> Any:
    """What is at a path below a group, by hard links alone: soft and external ones may lead out of the file."""
    import h5py

    item = group
    for name in filter(None, path.split("/")):
        if not isinstance(item, h5py.Group) or not item.id.links.exists(name.encode()):
            raise InputError(f"{path!r} is missing; {_REMEDY}")
        if item.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
            raise InputError(f"{path!r} is a link to elsewhere, which is not followed; {_REMEDY}")
        item = item[name]
    return item


def _check_dataset(dataset: Any) -> None:
    """Accept an array of floats whose values are in this file, as they are."""
    import h5py

    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise InputError(f"{dataset.name!r} is not an array; {_REMEDY}")
    if dataset.dtype.kind != "f" or dataset.dtype.itemsize not in (2, 4, 8):
        raise InputError(f"{dataset.name!r} is {dataset.dtype}; save float16, float32 or float64 arrays")
    if dataset.external or dataset.is_virtual:
        raise InputError(f"the values of {dataset.name!r} are in another file, which is not read; {_REMEDY}")
    if dataset.id.get_create_plist().get_nfilters():
        raise InputError(f"{dataset.name!r} is compressed, which Keras never does; undo it with h5repack -f NONE")


def _rename(layers: Mapping[str, list[NDArray[np.float32]]]) -> dict[str, NDArray[np.float32]]:
    """Keras' arrays as ours: the orders of gates and channels agree, kernels are transposed, two biases are one."""
    import numpy as np

    kernel, bias = layers["softmax"]
    vector = layers["attlayer"][0]
    result = {
        "embed.weight": layers["embedding"][0],
        "attention_layer.attention_vector": vector.ravel() if vector.shape[1:] == (1,) else vector,
        _OUTPUT_WEIGHT: kernel.T,
        _OUTPUT_BIAS: bias,
    }
    for number in (0, 1):
        arrays = layers[f"bi_lstm_{number}"]
        for suffix, (kernel, recurrent_kernel, bias) in (("_l0", arrays[:3]), ("_l0_reverse", arrays[3:])):
            result[f"lstm_{number}.weight_ih{suffix}"] = kernel.T
            result[f"lstm_{number}.weight_hh{suffix}"] = recurrent_kernel.T
            result[f"lstm_{number}.bias_ih{suffix}"] = bias
            result[f"lstm_{number}.bias_hh{suffix}"] = np.zeros_like(bias)
    return result


def looks_published(dimensions: Dimensions) -> bool:
    """Whether a model has the sizes of the published one; its weights may still be others."""
    return dimensions == PUBLISHED


class AnyBundle(Protocol):
    """A bundle, which is made of what is read here."""

    @property
    def dimensions(self) -> Dimensions: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    def model(self) -> TorchMoji: ...
    def save(self, path: str | Path) -> None: ...


def known_answers(bundle: AnyBundle) -> list[str]:
    """Compare a bundle with what the published weights are known to give.

    Returns:
        One line for each of the seven texts with other classes, and one if the mean embedding differs; empty if all
        is right.
    """
    if not looks_published(bundle.dimensions):
        return [f"the model has dimensions {vars(bundle.dimensions)}, the published one {vars(PUBLISHED)}"]
    rows = [bundle.tokenizer.ids(text, _KNOWN_MAXLEN) for text in KNOWN_ANSWERS]
    with torch.inference_mode():
        output = bundle.model()(pack_ids(rows))
    mismatches = []
    for (text, expected), found in zip(KNOWN_ANSWERS.items(), output.logits.topk(5).indices.tolist(), strict=True):
        if tuple(found) != expected:
            mismatches.append(f"{text!r} gives classes {found}, expected {list(expected)}")
    channels = output.embedding.mean(dim=0)[: len(KNOWN_EMBEDDING)].tolist()
    # Half a unit of the third decimal, and a little for another order of summation.
    if not all(abs(value - expected) < 0.00051 for value, expected in zip(channels, KNOWN_EMBEDDING, strict=True)):
        shown = [round(value, 3) for value in channels]
        mismatches.append(f"the mean embedding begins {shown}, expected {list(KNOWN_EMBEDDING)}")
    return mismatches
