"""Modules import in one direction only."""

from condense.paths import project_root
from condense.run import imports_of

PACKAGE = project_root() / "condense"

# A module may import from those above it, and from its own row; folders stand for all their files.
ORDER = """
paths parallel params metrics colmap distributed devices muon
cameras
captures
adapters synthetic
grid
voxels
raymarch
datasets
keypoints
poses ranking repositoryfiles text languagequeries
posesearch geometrydescriptor alignment language colour
posealign
keptposes lookalikes
verification
scenequeries
repository milvusrepository
rayoperator
field
fieldrays
fieldfit
fieldset pooling
scenefiles
backbone2d spconv_cpu
backbone3d
teacher
losses
links
linkset
model batches variantset
sparse
warps
extraction sparsebatch viewpairs
joint baselines ablations tuning
pretrain
sparsetrain rivals2d
tasks rivaldetectors
figures charts viewer
features2dfigures keypointfigures languagefigures overlays scenefigures
report run notebooks
launch
headlines
study
benchmarks plainfit
pretrained
repositorybench milvusbench distributedbench pipebench gpucheck cli
"""
RANK = {name: row for row, names in enumerate(ORDER.split("\n")) for name in names.split()}


def layer(module: str) -> str:
    return module.split(".")[1]


def test_every_module_has_a_place():
    modules = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    assert modules - {"__init__"} <= set(RANK), "give the new module a place in ORDER"


def test_no_module_imports_from_below():
    for path in PACKAGE.rglob("*.py"):
        here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for imported in imports_of(path.read_text()):
            if imported != "condense":
                assert here == "__init__" or RANK[layer(imported)] <= RANK[here], (
                    f"{path} imports {imported} from below"
                )
