"""The page that corrects a mask, in a real browser: what is drawn, saved, loaded and undone."""

from __future__ import annotations

import base64
import gzip
import shutil

import nibabel as nib
import numpy as np
import pytest
from builders import affine_of, axes, turned
from scipy.ndimage import distance_transform_edt

from singlestrip_bids.image import nifti
from singlestrip_bids.report import editor

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader"]
FLAGS += ["--enable-unsafe-swiftshader"]  # WebGL without a graphics card
SHAPE = (22, 26, 18)
SAVE_AS = "sub-01_desc-brain_mask.nii.gz"
GRIDS = {
    "LAS": (affine_of(axes("LAS"), (1.0, 1.5, 2.0), (5.0, 6.0, -7.0)), (2, 1)),
    "oblique": (affine_of(turned("RAS"), (1.2, 1.2, 1.2), (3.0, 4.0, 9.0)), (1, 0)),
    "PIR": (affine_of(axes("PIR"), (1.0, 2.2, 1.4), (-8.0, 2.0, 1.0)), (0, 4)),
    "unknown": (np.diag([-2.0, 2.0, 2.0, 1.0]), (0, 0)),
}  # affine, codes of qform and sform


def scan(folder, name: str = "LAS") -> tuple[nifti.Image, np.ndarray]:
    """A ball in noise, and a lopsided mask of it."""
    affine, codes = GRIDS[name]
    place = np.stack(np.indices(SHAPE), -1) - np.array(SHAPE) / 2
    radius = np.linalg.norm(place / np.array(SHAPE), axis=-1) * 2
    noise = np.random.default_rng(0).normal(0, 9, SHAPE)
    made = nib.Nifti1Image((300 * (radius < 0.8) + noise).astype(np.int16), affine)
    made.set_qform(affine, codes[0])
    made.set_sform(affine, codes[1])
    made.header.set_xyzt_units("mm", "sec")
    path = folder / "sub-01_T1w.nii.gz"
    nib.save(made, path)
    return nifti.load(path), (radius < 0.7) & (place[..., 0] + place[..., 1] < 6)


@pytest.fixture(scope="module")
def chromium():
    own = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    with api.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=own, args=FLAGS)
        except api.Error as error:
            pytest.skip(f"no Chromium (apt-get install chromium): {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, tmp_path):
    """Open the editor of a scan; in the end there must be no error, and no request to a server."""
    troubles, contexts = [], []

    def open_page(image, mask, before="", **texts):
        editor.write(
            tmp_path / "label.html",
            image,
            mask,
            **{"save_as": SAVE_AS, "where": "/in/here", **texts},
        )
        context = chromium.new_context(
            viewport={"width": 1020, "height": 900}, accept_downloads=True
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.add_init_script(before)
        page.on("console", lambda said: said.type == "error" and troubles.append(said.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("requestfailed", lambda one: troubles.append(one.url))
        page.on("request", lambda one: one.url.startswith("http") and troubles.append(one.url))
        page.goto((tmp_path / "label.html").as_uri())
        page.evaluate("editor.ready")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []


def drawn(page) -> np.ndarray:
    """The mask on the page, axes closest to RAS."""
    voxels, dims = page.evaluate("[Array.from(editor.bitmap()), facts.dims]")
    return np.array(voxels, np.uint8).reshape(dims, order="F")


def saved(page) -> nib.Nifti1Image:
    """The mask as a person gets it, by a click on Save."""
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save").click()
    assert waiting.value.suggested_filename == SAVE_AS
    return nib.Nifti1Image.from_bytes(gzip.decompress(waiting.value.path().read_bytes()))


def go(page, view: str, *voxels: tuple[int, int, int]) -> list[tuple[float, float]]:
    """Show a plane at the slice of the first voxel; return where the voxels are on the screen."""
    page.get_by_role("button", name=view).click()
    return page.evaluate(
        """async (voxels) => {
          const share = (at, axis) => (at + 0.5) / dims[axis];
          const fractions = voxels.map((voxel) => voxel.map(share));
          nv.scene.crosshairPos = fractions[0];
          nv.drawScene();
          await new Promise((next) => requestAnimationFrame(() => setTimeout(next)));
          const { left, top } = canvas.getBoundingClientRect();
          return fractions.map((fraction) => {
            const { pos } = nv.frac2canvasPosWithTile(fraction, nv.opts.sliceType % 3);
            return [left + pos[0] / nv.uiData.dpr, top + pos[1] / nv.uiData.dpr];
          });
        }""",
        voxels,
    )


def drag(page, points: list[tuple[float, float]]) -> None:
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=4)
    page.mouse.up()


def size(page, voxels: int) -> None:
    page.locator("#size").fill(str(voxels))


@pytest.mark.parametrize("name", GRIDS)
def test_what_is_saved_is_what_is_seen_on_the_grid_of_the_scan(tmp_path, visit, name):
    image, mask = scan(tmp_path, name)
    page = visit(image, mask)
    right, _ = nifti.to_ras(mask, image.affine)
    np.testing.assert_array_equal(drawn(page), right)
    assert saved(page).to_bytes() == nifti.mask_image(mask, image.nifti).to_bytes()
    size(page, 1)
    page.keyboard.press("b")
    changed = np.array(right)
    for view, voxel in (("Axial", (2, 5, 7)), ("Coronal", (3, 1, 9)), ("Sagittal", (1, 8, 3))):
        page.mouse.click(*go(page, view, voxel)[0])
        assert not changed[voxel]
        changed[voxel] = True
    np.testing.assert_array_equal(drawn(page), changed)
    file = saved(page)
    native = np.asarray(file.dataobj).astype(bool)
    np.testing.assert_array_equal(nifti.to_ras(native, image.affine)[0], changed)
    assert file.get_data_dtype() == np.uint8
    assert set(np.unique(file.dataobj)) == {0, 1}
    np.testing.assert_array_equal(file.affine, image.nifti.affine)
    for field in ("qform_code", "sform_code", "srow_x", "srow_z", "quatern_b", "qoffset_x"):
        np.testing.assert_array_equal(file.header[field], image.nifti.header[field])
    assert file.header.get_zooms() == image.nifti.header.get_zooms()
    assert file.header.get_xyzt_units()[0] == "mm"


def test_brush_eraser_and_undo(tmp_path, visit):
    page = visit(*scan(tmp_path))
    begin = drawn(page)
    undo, redo = (page.get_by_role("button", name=name) for name in ("Undo", "Redo"))
    assert not undo.is_enabled()
    size(page, 3)
    page.get_by_role("button", name="Brush").click()
    ends = go(page, "Axial", (3, 2, 9), (18, 2, 9))
    drag(page, ends)
    painted = drawn(page)
    assert painted[3:19, 2, 9].all()
    assert not painted[[1, 20], 2, 9].any()  # no farther than the brush is wide
    np.testing.assert_array_equal(painted[..., :9], begin[..., :9])
    np.testing.assert_array_equal(painted[..., 10:], begin[..., 10:])
    assert page.locator("#unsaved").inner_text() == "not saved"
    page.keyboard.press("e")
    drag(page, go(page, "Axial", (10, 2, 9), (18, 2, 9)))
    assert not drawn(page)[9:19, 2, 9].any()
    assert drawn(page)[3:8, 2, 9].all()
    undo.click()
    np.testing.assert_array_equal(drawn(page), painted)
    page.keyboard.press("Control+z")
    np.testing.assert_array_equal(drawn(page), begin)
    assert page.locator("#unsaved").inner_text() == "none"
    redo.click()
    np.testing.assert_array_equal(drawn(page), painted)
    page.keyboard.press("b")
    page.keyboard.down("Shift")  # the brush erases
    drag(page, [*reversed(ends)])
    page.keyboard.up("Shift")
    assert not drawn(page)[3:19, 2, 9].any()
    page.get_by_role("button", name="Start empty").click()
    assert not drawn(page).any()
    assert page.locator("#volume").inner_text() == "0 ml"
    page.keyboard.press("z")
    ml = f"{drawn(page).sum() * 3 / 1000:.4g} ml"
    assert page.locator("#volume").inner_text() == ml


def test_the_move_tool_changes_no_voxel(tmp_path, visit):
    page = visit(*scan(tmp_path))
    begin = drawn(page)
    places = go(page, "All", (10, 12, 9))
    page.mouse.dblclick(*places[0])
    drag(page, [places[0], (places[0][0] + 30, places[0][1] + 20)])
    np.testing.assert_array_equal(drawn(page), begin)
    assert not page.get_by_role("button", name="Undo").is_enabled()


def test_a_zoomed_and_shifted_slice_is_drawn_on_where_the_pointer_is(tmp_path, visit):
    page = visit(scan(tmp_path)[0], None)
    size(page, 1)
    page.keyboard.press("b")
    x, y = go(page, "Axial", (10, 12, 9))[0]
    page.mouse.move(x, y)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.wait_for_function("nv.scene.pan2Dxyzmm[3] > 1")
    page.keyboard.up("Control")
    page.keyboard.press("+")
    page.mouse.down(button="right")
    for shift in (10, 20, 30):
        page.mouse.move(x + shift, y - shift)
        page.evaluate("new Promise((next) => requestAnimationFrame(() => setTimeout(next)))")
    page.mouse.up(button="right")
    assert page.evaluate("nv.scene.pan2Dxyzmm[3]") == pytest.approx(1.1 * 1.25)
    assert not drawn(page).any()
    place = go(page, "Axial", (10, 12, 9))[0]
    assert place[0] > x + 15 and place[1] < y - 15
    page.mouse.click(*place)
    assert np.argwhere(drawn(page)).tolist() == [[10, 12, 9]]
    page.keyboard.press("0")
    assert page.evaluate("[...nv.scene.pan2Dxyzmm]") == [0, 0, 0, 1]


def test_an_outline_is_filled_in_each_plane(tmp_path, visit):
    page = visit(scan(tmp_path)[0], None)
    page.keyboard.press("o")
    for across, view in enumerate(["Sagittal", "Coronal", "Axial"]):
        flat = [axis for axis in range(3) if axis != across]
        corners = np.full((4, 3), 8)
        corners[:, flat] = [(4, 5), (14, 5), (14, 12), (4, 12)]
        drag(page, go(page, view, *corners.tolist()))
        filled = np.argwhere(drawn(page))
        assert (filled[:, across] == 8).all()
        inside = {(i, j) for i in range(5, 14) for j in range(6, 12)}  # of a line through centres
        found = set(map(tuple, filled[:, flat].tolist()))
        assert inside <= found
        assert all(4 <= i <= 14 and 5 <= j <= 12 for i, j in found)
        page.keyboard.press("z")
        assert not drawn(page).any()


def signed(mask: np.ndarray, sizes: tuple[float, float]) -> np.ndarray:
    """Distance from the border in mm, below 0 inside."""
    outer, inner = (distance_transform_edt(part, sizes) for part in (~mask, mask))
    return outer - inner


def test_slices_between_two_are_filled(tmp_path, visit):
    page = visit(scan(tmp_path)[0], None)
    page.keyboard.press("b")
    size(page, 6)
    drag(page, go(page, "Coronal", (8, 4, 6), (14, 4, 6)))
    page.keyboard.press("f")
    assert "From coronal slice 5" in page.locator("#between").inner_text()
    go(page, "Coronal", (8, 12, 9))
    page.keyboard.press("g")
    assert "no mask on coronal slice 13" in page.locator("#between").inner_text()
    size(page, 9)
    drag(page, go(page, "Coronal", (8, 12, 9), (8, 12, 11)))
    before = drawn(page)
    page.get_by_role("button", name="To here").click()
    assert "Filled 7 coronal slices" in page.locator("#between").inner_text()
    after = drawn(page)
    ends = [signed(before[:, at].astype(bool), (1.0, 2.0)) for at in (4, 12)]
    for at in range(4, 13):
        share = (at - 4) / 8
        np.testing.assert_array_equal(after[:, at], (1 - share) * ends[0] + share * ends[1] < 0)
    assert not after[:, :4].any() and not after[:, 13:].any()
    page.keyboard.press("z")
    np.testing.assert_array_equal(drawn(page), before)


def put(page, image: nib.spatialimages.SpatialImage | bytes, name: str = "mask.nii.gz") -> str:
    """Load a file; the message that follows."""
    content = image if isinstance(image, bytes) else image.to_bytes()
    content = gzip.compress(content) if name.endswith(".gz") else content
    text = base64.b64encode(content).decode()
    page.evaluate(
        """async ([text, name]) => load(new File([fromBase64(text)], name))""", [text, name]
    )
    return page.locator("#message").inner_text()


@pytest.mark.parametrize("name", ["oblique", "unknown"])
def test_masks_of_other_programs_are_loaded(tmp_path, visit, name):
    image, mask = scan(tmp_path, name)
    page = visit(image, None)
    right = nifti.to_ras(mask, image.affine)[0]
    affine = image.nifti.affine
    big = nib.Nifti1Header(endianness=">")
    scaled = nib.Nifti1Image(mask.astype(np.int16) * 100, affine)
    scaled.header.set_slope_inter(0.01, 0)
    turn = nib.Nifti1Image(mask.astype(np.uint8), None, image.nifti.header)
    turn.set_qform(affine, 1)
    turn.set_sform(None, 0)
    kinds = [
        nifti.mask_image(mask, image.nifti),
        nib.Nifti1Image(mask.astype(np.float32), affine),
        nib.Nifti1Image(mask.astype(np.int32), affine, big),
        nib.Nifti2Image(mask.astype(np.int64), affine, dtype=np.int64),
        scaled,
        turn,
    ]
    for number, kind in enumerate(kinds):
        assert put(page, kind, ("mask.nii.gz", "mask.nii")[number % 2]) == ""
        np.testing.assert_array_equal(drawn(page), right)
        page.keyboard.press("z")
        assert not drawn(page).any()


def test_files_that_do_not_fit_are_refused(tmp_path, visit):
    image, mask = scan(tmp_path)
    page = visit(image, mask)
    begin = drawn(page)
    affine = image.nifti.affine
    moved = affine.copy()
    moved[0, 3] += 1
    ones = mask.astype(np.uint8)
    cases = [
        (nib.Nifti1Image(ones[1:], affine), "21 × 26 × 18 voxels, and the scan has 22 × 26 × 18"),
        (nib.Nifti1Image(ones, moved), "at other places"),
        (nib.Nifti1Image(np.stack([ones] * 2, -1), affine), "it has 2 volumes"),
        (nib.Nifti1Image(ones.astype(np.complex64), affine), "voxels are of a kind"),
        (nib.Nifti1Image(ones, affine).to_bytes()[:-9], "cut short"),
        (b"<html>" * 99, "not a NIfTI file"),
        (b"", "not a NIfTI file"),
    ]
    for file, message in cases:
        said = put(page, file)
        assert said.startswith("mask.nii.gz is not loaded: ")
        assert message in said
    put(page, b"\x1f\x8bnothing", "mask.nii")
    assert "it is damaged" in page.locator("#message").inner_text()
    np.testing.assert_array_equal(drawn(page), begin)
    (tmp_path / "mine.nii").write_bytes(nib.Nifti1Image(ones * 0 + 1, affine).to_bytes())
    page.locator("#load").set_input_files(tmp_path / "mine.nii")
    page.wait_for_function("document.querySelector('#message').hidden && count === bitmap.length")


def test_keys(tmp_path, visit):
    page = visit(*scan(tmp_path))
    for key, name in zip("beov", ("Brush", "Eraser", "Outline", "Move"), strict=True):
        page.keyboard.press(key)
        assert page.get_by_role("button", name=name, pressed=True).count() == 1
    assert page.locator("button[data-tool][aria-pressed=true]").count() == 1
    for key, name in zip("23451", ("Axial", "Coronal", "Sagittal", "3D", "All"), strict=True):
        page.keyboard.press(key)
        assert page.get_by_role("button", name=name, pressed=True).count() == 1
    before = int(page.locator("#size").input_value())
    page.keyboard.press("]")
    assert int(page.locator("#size").input_value()) == before + 1
    page.keyboard.press("[")
    page.keyboard.press("[")
    assert int(page.locator("#size").input_value()) == before - 1
    go(page, "Coronal", (10, 12, 9))
    page.locator("#canvas").focus()
    for key in ("ArrowUp", "ArrowUp", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    assert "coronal 15 of 26" in page.locator("#place").inner_text()
    page.locator("#darkest").focus()
    page.keyboard.press("b")  # a letter in a field is no shortcut
    assert page.get_by_role("button", name="Move", pressed=True).count() == 1
    page.locator("#darkest").fill("40")
    assert page.evaluate("nv.volumes[0].cal_min") == 40
    page.keyboard.press("Tab")
    for _ in range(60):  # the keyboard reaches all that can be used
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.id") == "save":
            break
    else:
        pytest.fail("Save is out of reach")


def test_saving_says_what_comes_next(tmp_path, visit):
    page = visit(scan(tmp_path)[0], None, where="/a </script><b>&", about="Only a draft <i>.")
    assert page.get_by_text("Only a draft <i>.").is_visible()
    assert page.evaluate("editor.save()") is None
    assert "The mask is empty" in page.locator("#message").inner_text()
    assert not page.locator("#next").is_visible()
    page.evaluate("editor.paint(3, 4, 5)")
    assert drawn(page)[3, 4, 5] == 1 == drawn(page).sum()
    with page.expect_event("dialog") as dialog:
        page.close(run_before_unload=True)
    assert dialog.value.type == "beforeunload"
    dialog.value.dismiss()
    with page.expect_download():
        page.keyboard.press("Control+s")
    said = page.locator("#next").inner_text()
    assert SAVE_AS in said
    assert "/a </script><b>&" in said
    assert "singlestrip-bids BIDS OUT group" in said
    page.wait_for_function("document.querySelector('#unsaved').textContent === 'saved'")
    page.reload()  # nothing is lost, and nobody is asked
    page.evaluate("editor.ready")


def test_a_browser_without_webgl_is_told(tmp_path, visit):
    page = visit(*scan(tmp_path), before="HTMLCanvasElement.prototype.getContext = () => null")
    assert "WebGL 2 is missing" in page.locator("#message").inner_text()
    assert page.locator(".editor :is(button, input):enabled").count() == 0


def test_axe_finds_nothing(tmp_path, visit):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing")
    page = visit(*scan(tmp_path), about="One more sentence.")
    page.evaluate("say('A message.')")
    page.locator("#next").evaluate("(next) => { next.hidden = false; }")
    page.locator("summary").click()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = axe.Axe().run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
