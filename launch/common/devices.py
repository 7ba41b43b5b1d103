"""The flags of the devices that a program runs on."""

from absl import flags

MESH = flags.DEFINE_string(
    "mesh",
    None,
    "The devices the model lies on, as data:2,model:4: each of `data` replicas of it on `model` "
    "devices. Replicas share the work of training, validation and cards; elsewhere there is one, "
    "model:4. Default: one device.",
)
