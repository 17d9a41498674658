"""Which of a bundle's variants to run: the precision that is asked for, in the form that suits the backend best."""

from __future__ import annotations

from collections.abc import Sequence

from vtc.bundle.facts import Form, Variant, precision_and_form
from vtc.bundle.manifest import Manifest
from vtc.errors import InputError

PORTABLE = "-portable"


def choose_variant(manifest: Manifest, wanted: str | None, default: str, forms: Sequence[Form]) -> Variant:
    """The variant to run.

    Parameters
    ----------
    manifest : Manifest
    wanted : str or None
        A variant's name, or a precision, which is run in the best form, or with ``-portable`` behind it in that one;
        None leaves the precision to the runtime, which never takes rounded weights where there are others.
    default : str
        The precision that is taken then, if the bundle has it; else it is the bundle's first.
    forms : sequence of str
        Forms that the backend runs, best first.

    Raises
    ------
    InputError
        If the bundle has no such variant, or the backend does not run its form.
    """
    here = {one.name: one for one in manifest.variants if one.form in forms}
    if wanted is not None and wanted.endswith(PORTABLE):
        manifest.check_precision(wanted.removesuffix(PORTABLE))
        return here[wanted.removesuffix(PORTABLE)]
    if wanted is None:
        wanted = default if default in manifest.precisions else manifest.precisions[0]
    elif wanted not in (one.name for one in manifest.variants):
        manifest.check_precision(wanted)
    if wanted not in here:
        raise InputError(
            f"{manifest.root}: {wanted} graphs are not for this backend or provider, which runs "
            f"{', '.join(here)}; give another --precision"
        )
    if precision_and_form(wanted)[1] != "portable":
        return here[wanted]
    of_precision = [one for one in here.values() if one.precision == wanted]
    return min(of_precision, key=lambda one: forms.index(one.form))
