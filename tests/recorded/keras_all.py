"""The scripts in Keras in one process, each into a folder of its own; python FILE OUT."""

import json
import sys
from pathlib import Path

import keras_cnn
import keras_given
import keras_odd
import keras_transformer

if __name__ == "__main__":
    for script in (keras_cnn, keras_transformer, keras_odd):
        print(json.dumps({"script": script.__name__}))
        keras_given.OUT = Path(sys.argv[1]) / script.__name__
        keras_given.OUT.mkdir()
        script.main()
