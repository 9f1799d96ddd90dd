"""dlib's face recognition network and landmarks as extractors of raygen, with the weights of face_recognition_models.

dlib's network takes chips of 150 px: a face that is found by a detector, and turned and scaled so that five points of
it (the corners of the eyes, the base of the nose) lie at fixed places, with a quarter of the chip as margin. All of
this is done here, on pictures in the size in which they are stored. A face has to be about 40 px wide to be found.
"""

import hashlib
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np

#: The detector doubles pictures so many times: it finds faces of 80 px, and of half of that with each doubling.
DOUBLINGS = 1
#: The points of the 68 that are averaged to the eyes, the tip of the nose and the corners of the mouth.
FIVE = ((36, 37, 38, 39, 40, 41), (42, 43, 44, 45, 46, 47), (30,), (48,), (54,))


def weights(name):
    """A file of face_recognition_models. The package is not imported: that needs `pkg_resources`."""
    package = find_spec("face_recognition_models")
    if package is None:
        raise FileNotFoundError("the package face_recognition_models is not installed")
    return Path(package.submodule_search_locations[0]) / "models" / name


def largest_face(detector, image):
    """The largest rectangle that holds a face; None where none is found."""
    return max(detector(image, DOUBLINGS), key=lambda face: face.area(), default=None)


class _Dlib:
    """What both have in common."""

    files: tuple[str, ...]
    input_size = None
    channels = "rgb"
    value_range = (0, 255)

    @cached_property
    def sha256(self):
        """Of all files, one after the other."""
        return hashlib.sha256(b"".join(weights(name).read_bytes() for name in self.files)).hexdigest()

    def load(self, device):
        """A network that takes pictures one at a time, on the CPU: the wheels of dlib-bin are built without CUDA."""
        import dlib

        detector, networks = dlib.get_frontal_face_detector(), self.networks(dlib)

        def run(pixels):
            images = np.ascontiguousarray(np.rint(pixels).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1))
            return np.stack([self.of(image, largest_face(detector, image), *networks) for image in images])

        return run


class Embedder(_Dlib):
    """Vectors of 128 values. dlib compares them by Euclidean distance, with 0.6 as threshold; raygen by cosine."""

    kind = "embedder"
    licence = "CC0-1.0"
    files = ("shape_predictor_5_face_landmarks.dat", "dlib_face_recognition_resnet_model_v1.dat")

    def networks(self, dlib):
        points, network = (str(weights(name)) for name in self.files)
        return dlib.shape_predictor(points), dlib.face_recognition_model_v1(network)

    @staticmethod
    def of(image, face, points, network):
        if face is None:
            return np.full(128, np.nan)
        return np.array(network.compute_face_descriptor(image, points(image, face)))


class Landmarker(_Dlib):
    """Five landmarks from the 68 of 300-W."""

    kind = "landmarker"
    licence = "research only: trained on iBUG 300-W"
    files = ("shape_predictor_68_face_landmarks.dat",)

    def networks(self, dlib):
        return (dlib.shape_predictor(str(weights(self.files[0]))),)

    @staticmethod
    def of(image, face, points):
        if face is None:
            return np.full((5, 2), np.nan)
        found = np.array([(point.x + 0.5, point.y + 0.5) for point in points(image, face).parts()])
        return np.stack([found[list(numbers)].mean(axis=0) for numbers in FIVE]) / [image.shape[1], image.shape[0]]
