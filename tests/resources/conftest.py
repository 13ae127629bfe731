import sys

from tests.support.template import ROOT

# At the end: tools/resource.py must not replace the module `resource` of the standard library.
sys.path.append(str(ROOT / "tools"))
