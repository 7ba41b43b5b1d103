"""The flags of the devices that a program runs on."""

from absl import flags

MESH = flags.DEFINE_string(
    "mesh",
    None,
    "The devices the model lies on, as data:2,model:4: each of `data` copies of it on `model` "
    "devices. Copies share the work of training; one request is answered by one of them. Default: "
    "one device.",
)
