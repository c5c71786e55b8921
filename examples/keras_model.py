"""The embedder as a plain Keras model: an own input tensor, a flatten + dense classifier, the first N layers frozen.

python examples/keras_model.py
"""

import keras
import numpy as np

import imagebeam


def main() -> None:
    image = keras.Input((64, 64, 3), name="photo")
    augmented = keras.layers.RandomFlip("horizontal")(image)
    config = imagebeam.EmbedderConfig(
        "VGG16", "random:0", layers=("block4_pool",), pooling="flatten", image_size=(64, 64)
    )
    embedder = imagebeam.build_embedder(config, input_tensor=augmented)

    backbone = embedder.get_layer("vgg16")
    for layer in backbone.layers[:10]:
        layer.trainable = False

    hidden = keras.layers.Dense(128, activation="relu")(embedder.output)
    classifier = keras.Model(image, keras.layers.Dense(5, activation="softmax")(hidden))
    classifier.compile("adam", "sparse_categorical_crossentropy")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3)).astype("float32")
    classifier.fit(pixels, np.arange(8) % 5, epochs=1, verbose=0)
    print("probabilities:", classifier.predict(pixels, verbose=0).shape)


if __name__ == "__main__":
    main()
