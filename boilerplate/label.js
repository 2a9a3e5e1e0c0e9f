"use strict";

const find = (id) => document.querySelector(`#${id}`);
const all = (what) => [...document.querySelectorAll(what)];
const read = (id) => JSON.parse(find(id).textContent);
const facts = read("facts");
const { dims, sizes } = facts; // of the grid shown, axes closest to RAS; sizes in mm
const steps = [1, dims[0], dims[0] * dims[1]]; // from a voxel to the next one along each axis
const bitmap = new Uint8Array(dims[0] * dims[1] * dims[2]); // the mask
const [canvas, stage] = [find("canvas"), find("stage")];
const PLANES = ["axial", "coronal", "sagittal"]; // as NiiVue counts them
const RENDER = 4;
const HISTORY = 3e7; // voxels that can be undone
const axisOf = (plane) => 2 - plane; // along which the slices of a plane are counted
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
let view = 3, pane = 0; // what is shown; the plane that the pointer was over last
let stroke = null; // what is being drawn
const say = (text) => {
  find("message").textContent = text;
  find("message").hidden = !text;
};

// Bytes: base64 and gzip.
const fromBase64 = (text) => {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
};
const pass = async (bytes, stream) =>
  new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());
const unpack = (bytes) => pass(bytes, new DecompressionStream("gzip"));
const pack = (bytes) => pass(bytes, new CompressionStream("gzip"));

// The viewer. It draws once a frame, however often it is asked to, and has no keys of its own. In 3D
// there is the mask alone, as a surface, which is made anew after each change.
const nv = new niivue.Niivue({
  logLevel: "error",
  loadingText: "",
  dragAndDropEnabled: false,
  isNearestInterpolation: true,
  showAllOrientationMarkers: true,
  multiplanarShowRender: 1,
  multiplanarLayout: 2,
  multiplanarPadPixels: 6,
  crosshairWidthUnit: "mm",
  crosshairGap: 8,
  crosshairColor: [0.34, 0.71, 0.91, 0.8],
  fontColor: [0.85, 0.88, 0.92, 1],
  fontMinPx: 15,
  fontSizeScaling: 0.2,
  smoothDrawing: 1,
  dragMode: 0,
});
const [CROSSHAIR, PAN] = [8, 3];
nv.setMouseEventConfig({ // the constructor would lose it
  leftButton: { primary: CROSSHAIR, withShift: PAN, withCtrl: CROSSHAIR },
  rightButton: PAN,
  centerButton: PAN,
});
const drawNow = nv.drawScene.bind(nv);
const draw3D = nv.drawImage3D.bind(nv);
let frame = 0, stale = null; // a box whose surface is older than its mask
nv.drawScene = () => {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    if (stale && !stroke && view >= 3) showSurface();
    drawNow();
    fitCrosshair();
  });
};
const fitCrosshair = () => { // about as wide as a pixel, at any size of the picture
  const tile = nv.screenSlices.find(({ axCorSag }) => axCorSag < 3);
  if (!tile) return;
  const mm = Math.abs((1.4 * tile.fovMM[0]) / tile.leftTopWidthHeight[2]);
  if (Math.abs(mm / nv.opts.crosshairWidth - 1) > 0.05) nv.setCrosshairWidth(mm);
};
nv.drawImage3D = (...view3D) => {
  const { drawOpacity, gl, renderShader } = nv;
  renderShader.use(gl);
  gl.uniform1f(renderShader.uniforms.backOpacity, 0);
  nv.drawOpacity = 1;
  draw3D(...view3D);
  nv.drawOpacity = drawOpacity;
};
const dropGradients = () => { // they take most of the time to load, and no view here uses them
  const { gl } = nv;
  const make = nv.rgbaTex.bind(nv);
  const theirs = [gl.TEXTURE6, gl.TEXTURE8];
  nv.rgbaTex = (old, unit, size, ...more) =>
    make(old, unit, theirs.includes(unit) ? [3, 1, 1, size[3]] : size, ...more);
};
for (const kind of ["keydown", "keyup", "dblclick"]) {
  stage.addEventListener(kind, (event) => event.stopPropagation(), true);
}

// Changes: each is the list of voxels that it turns over. To undo it, or to do it again, is to turn
// them over once more.
const done = [], undone = [];
let turned = [], count = 0, oldest = null, saved = null, hasSaved = false;
const state = () => done.at(-1) ?? oldest;
const isChanged = () => state() !== saved;
const put = (voxel, value) => {
  if (bitmap[voxel] === value) return;
  bitmap[voxel] = value;
  count += value ? 1 : -1;
  turned.push(voxel);
};
const commit = () => {
  if (!turned.length) return;
  done.push(Uint32Array.from(turned));
  turned = [];
  undone.length = 0;
  let total = done.reduce((sum, voxels) => sum + voxels.length, 0);
  while (total > HISTORY && done.length > 1) {
    oldest = done.shift();
    total -= oldest.length;
  }
  tell();
};
const shift = (from, to) => {
  if (stroke || !from.length) return;
  const voxels = from.pop();
  to.push(voxels);
  for (const voxel of voxels) count += (bitmap[voxel] ^= 1) ? 1 : -1;
  show(voxels);
  tell();
};
const replace = (value) => {
  for (let voxel = 0; voxel < bitmap.length; voxel++) put(voxel, value(voxel));
  show(turned);
  commit();
};
const tell = () => {
  const ml = (count * sizes[0] * sizes[1] * sizes[2]) / 1000;
  const digits = { maximumSignificantDigits: 4 };
  find("volume").textContent = `${ml.toLocaleString("en", digits)} ml`;
  find("unsaved").textContent = isChanged() ? "not saved" : hasSaved ? "saved" : "none";
  find("undo").disabled = !done.length;
  find("redo").disabled = !undone.length;
};
window.addEventListener("beforeunload", (event) => isChanged() && event.preventDefault());

// Bring changed voxels to the picture: the box around them and nothing else.
const boxOf = (voxels) => {
  const [low, high] = [[...dims], [-1, -1, -1]];
  for (let n = 0; n < voxels.length; n++) {
    let rest = voxels[n];
    for (let axis = 2; axis >= 0; axis--) {
      const at = Math.floor(rest / steps[axis]);
      rest -= at * steps[axis];
      if (at < low[axis]) low[axis] = at;
      if (at > high[axis]) high[axis] = at;
    }
  }
  return { low, high };
};
const extentOf = ({ low, high }) => high.map((last, axis) => last - low[axis] + 1);
const send = (box, unit, texture, bytes, [nx, ny], [x, y, z]) => { // from there on in the bytes
  const { gl } = nv;
  const layout = {
    UNPACK_ROW_LENGTH: nx, UNPACK_IMAGE_HEIGHT: ny,
    UNPACK_SKIP_PIXELS: x, UNPACK_SKIP_ROWS: y, UNPACK_SKIP_IMAGES: z,
  };
  gl.activeTexture(unit);
  gl.bindTexture(gl.TEXTURE_3D, texture);
  gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  for (const name in layout) gl.pixelStorei(gl[name], layout[name]);
  gl.texSubImage3D(gl.TEXTURE_3D, 0, ...box.low, ...extentOf(box), gl.RED, gl.UNSIGNED_BYTE, bytes);
  for (const name in layout) gl.pixelStorei(gl[name], 0);
};
const showBox = (box) => {
  send(box, nv.gl.TEXTURE7, nv.drawTexture, bitmap, dims, box.low);
  stale = {
    low: box.low.map((at, axis) => Math.min(at - 1, stale?.low[axis] ?? at)),
    high: box.high.map((at, axis) => Math.max(at + 1, stale?.high[axis] ?? at)),
  };
  nv.drawScene();
};
const show = (voxels) => { if (voxels.length) showBox(boxOf(voxels)); };
const showSurface = () => { // the share of the mask among the 27 voxels around each one
  const box = {
    low: stale.low.map((at) => Math.max(at, 0)),
    high: stale.high.map((at, axis) => Math.min(at, dims[axis] - 1)),
  };
  const wide = { low: box.low.map((at) => at - 1), high: box.high.map((at) => at + 1) };
  const [nx, ny, nz] = extentOf(wide);
  const [left, right] = [Math.max(wide.low[0], 0), Math.min(wide.high[0], dims[0] - 1) + 1];
  let sums = new Uint8Array(nx * ny * nz);
  for (let k = 0; k < nz; k++) {
    for (let j = 0; j < ny; j++) {
      const [y, z] = [wide.low[1] + j, wide.low[2] + k];
      if (y < 0 || z < 0 || y >= dims[1] || z >= dims[2]) continue;
      const row = y * steps[1] + z * steps[2];
      sums.set(bitmap.subarray(row + left, row + right), nx * (j + ny * k) + left - wide.low[0]);
    }
  }
  for (const step of [1, nx, nx * ny]) { // what lies at the edges of `wide` is not used
    const before = sums;
    sums = new Uint8Array(before.length);
    for (let n = step; n < sums.length - step; n++) {
      sums[n] = before[n - step] + before[n] + before[n + step];
    }
  }
  for (let n = 0; n < sums.length; n++) sums[n] = (sums[n] * 255) / 27;
  send(box, nv.gl.TEXTURE10, nv.drawSmoothedTexture, sums, [nx, ny], [1, 1, 1]);
  stale = null;
};

// Files: voxels in the order of the scan, under the header that came with this page.
const eachVoxel = (visit) => { // its number in a file, and its number here
  const along = facts.axes.map(([axis, flipped]) => (flipped ? -steps[axis] : steps[axis]));
  const ends = facts.axes.map(([axis, flipped]) => (flipped ? (dims[axis] - 1) * steps[axis] : 0));
  const start = ends[0] + ends[1] + ends[2];
  for (let k = 0, there = 0; k < facts.shape[2]; k++) {
    for (let j = 0; j < facts.shape[1]; j++) {
      let here = start + k * along[2] + j * along[1];
      for (let i = 0; i < facts.shape[0]; i++, there++, here += along[0]) visit(there, here);
    }
  }
};
const save = async () => {
  say("");
  if (!count) {
    say("The mask is empty. Draw the brain first, then save.");
    return null;
  }
  const now = state();
  const header = fromBase64(facts.header);
  const file = new Uint8Array(header.length + bitmap.length);
  file.set(header);
  eachVoxel((there, here) => { file[header.length + there] = bitmap[here]; });
  const packed = await pack(file);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([packed], { type: "application/gzip" }));
  link.download = facts.save_as;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  [saved, hasSaved] = [now, true];
  find("next").hidden = false;
  tell();
  return packed;
};

const KINDS = {
  2: Uint8Array, 256: Int8Array, 4: Int16Array, 512: Uint16Array, 8: Int32Array, 768: Uint32Array,
  16: Float32Array, 64: Float64Array, 1024: BigInt64Array, 1280: BigUint64Array,
}; // by NIfTI's number for a type
const LAYOUTS = { // where a header has what: of NIfTI-1 and NIfTI-2
  348: {
    short: "getInt16", real: "getFloat32", wide: 4, dim: [40, "getInt16", 2], kind: 70, pixdim: 76,
    offset: [108, "getFloat32"], slope: 112, qform: 252, sform: 254, turn: 256, rows: 280,
    unit: [123, "getUint8"],
  },
  540: {
    short: "getInt32", real: "getFloat64", wide: 8, dim: [16, "getBigInt64", 8], kind: 12,
    pixdim: 104, offset: [168, "getBigInt64"], slope: 176, qform: 344, sform: 348, turn: 352,
    rows: 400, unit: [500, "getInt32"],
  },
};
const readNifti = (bytes) => {
  const view = new DataView(bytes.buffer);
  const size = (little) => (bytes.length > 352 ? view.getInt32(0, little) : 0);
  const little = size(true) in LAYOUTS;
  const layout = LAYOUTS[size(little)];
  if (!layout) throw new Error("it is not a NIfTI file.");
  const number = (at, how) => Number(view[how](at, little));
  const reals = (at, many) =>
    Array.from({ length: many }, (_, n) => number(at + n * layout.wide, layout.real));
  const [start, how, wide] = layout.dim;
  const dim = Array.from({ length: 8 }, (_, n) => number(start + n * wide, how));
  const shape = [1, 2, 3].map((n) => (n <= dim[0] ? dim[n] : 1));
  const volumes = dim.slice(4, dim[0] + 1).reduce((product, length) => product * length, 1);
  const Kind = KINDS[number(layout.kind === 12 ? 12 : 70, "getInt16")];
  if (!Kind) throw new Error("its voxels are of a kind that masks do not have.");
  const length = shape[0] * shape[1] * shape[2];
  const offset = number(...layout.offset);
  const part = bytes.slice(offset, offset + length * Kind.BYTES_PER_ELEMENT);
  if (part.length < length * Kind.BYTES_PER_ELEMENT) throw new Error("the file is cut short.");
  if (!little) {
    for (let at = 0; at < part.length; at += Kind.BYTES_PER_ELEMENT) {
      part.subarray(at, at + Kind.BYTES_PER_ELEMENT).reverse();
    }
  }
  const [slope, inter] = reals(layout.slope, 2);
  return {
    shape, volumes, voxels: new Kind(part.buffer), slope: slope || 1, inter: slope ? inter : 0,
    affine: affineOf({
      shape, pixdim: reals(layout.pixdim, 4), turn: reals(layout.turn, 6),
      rows: reals(layout.rows, 12), unit: number(...layout.unit) & 7,
      qform: number(layout.qform, layout.short), sform: number(layout.sform, layout.short),
    }),
  };
};
const affineOf = ({ shape, pixdim, turn, rows, unit, qform, sform }) => { // rows in mm
  const zoom = pixdim.slice(1);
  let affine;
  if (sform > 0) {
    affine = [rows.slice(0, 4), rows.slice(4, 8), rows.slice(8)];
  } else if (qform > 0) {
    const [b, c, d, ...origin] = turn;
    const a = Math.sqrt(Math.max(0, 1 - b * b - c * c - d * d));
    if (pixdim[0] < 0) zoom[2] = -zoom[2];
    affine = [
      [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
      [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
      [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ].map((row, n) => [...row.map((value, axis) => value * zoom[axis]), origin[n]]);
  } else {
    zoom[0] = -zoom[0];
    affine = zoom.map((step, n) => {
      const row = [0, 0, 0, (-step * (shape[n] - 1)) / 2];
      row[n] = step;
      return row;
    });
  }
  const scale = { 1: 1000, 3: 0.001 }[unit] ?? 1;
  return affine.map((row) => row.map((value) => value * scale));
};
const isApart = (affine) => { // do the corners of both grids lie at different places?
  const ends = facts.shape.map((length) => [0, length - 1]);
  let most = 0;
  for (const i of ends[0]) for (const j of ends[1]) for (const k of ends[2]) {
    affine.forEach((row, n) => {
      const mm = (r) => r[0] * i + r[1] * j + r[2] * k + r[3];
      most = Math.max(most, Math.abs(mm(row) - mm(facts.affine[n])));
    });
  }
  return !(most <= facts.tolerance * Math.min(...sizes));
};
const load = async (file) => {
  say("");
  try {
    let bytes = new Uint8Array(await file.arrayBuffer());
    if (bytes[0] === 0x1f && bytes[1] === 0x8b) {
      bytes = await unpack(bytes).catch(() => { throw new Error("it is damaged."); });
    }
    const { shape, volumes, voxels, slope, inter, affine } = readNifti(bytes);
    if (volumes !== 1) throw new Error(`it has ${volumes} volumes; a mask has one.`);
    if (shape.some((length, n) => length !== facts.shape[n])) {
      throw new Error(`it has ${shape.join(" × ")} voxels, and the scan has ` +
        `${facts.shape.join(" × ")}. Use a mask on the grid of the scan.`);
    }
    if (isApart(affine)) {
      throw new Error("its voxels lie at other places than those of the scan. Use a mask on the " +
        "grid of the scan.");
    }
    const inside = new Uint8Array(bitmap.length);
    eachVoxel((there, here) => { inside[here] = Number(voxels[there]) * slope + inter > 0.5; });
    replace((voxel) => inside[voxel]);
  } catch (error) {
    say(`${file.name} is not loaded: ${error.message}`);
  }
};

// Places: from the pointer to voxels, and the slices that are shown.
const plane = () => (view < 3 ? view : pane);
const sliceOf = (which) => {
  const axis = axisOf(which);
  return clamp(Math.floor(nv.scene.crosshairPos[axis] * dims[axis]), 0, dims[axis] - 1);
};
const pointOf = (event) => {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};
const tileAt = ([x, y]) => {
  const { dpr } = nv.uiData;
  const number = nv.tileIndex(x * dpr, y * dpr);
  return { number, plane: nv.screenSlices[number]?.axCorSag ?? -1 };
};
const isFlat = (tile) => tile.plane >= 0 && tile.plane < 3;
const spotAt = ([x, y], tile) => { // in voxels, the first one from 0 to 1; within the tile
  const { dpr } = nv.uiData;
  const [left, top, width, height] = nv.screenSlices[tile.number].leftTopWidthHeight;
  const [low, high] = [Math.min(left, left + width), Math.max(left, left + width)];
  const inside = [clamp(x * dpr, low + 0.01, high - 0.01), clamp(y * dpr, top + 0.01, top + height - 0.01)];
  const spot = nv.screenXY2TextureFrac(...inside, tile.number, false);
  const voxels = Array.from(spot, (part, axis) => part * dims[axis]);
  voxels[axisOf(tile.plane)] = sliceOf(tile.plane) + 0.5;
  return voxels;
};
const isWithin = (spot) => spot.every((at, axis) => at >= 0 && at < dims[axis]);
const moveSlice = (by) => {
  const move = [0, 0, 0];
  move[axisOf(plane())] = by;
  nv.moveCrosshairInVox(...move);
};
const tellPlace = () => {
  find("place").textContent = PLANES
    .map((name, which) => `${name} ${sliceOf(which) + 1} of ${dims[axisOf(which)]}`)
    .join(" · ").replace(/^./, (letter) => letter.toUpperCase());
};

// Tools.
let tool = "move";
const diameter = () => find("size").valueAsNumber * Math.min(...sizes); // mm
const use = (name) => {
  tool = stage.dataset.tool = name;
  for (const button of all("[data-tool]:is(button)")) {
    button.ariaPressed = button.dataset.tool === name;
  }
  trace("");
};
const trace = (path) => {
  for (const id of ["trace", "trace-dark"]) find(id).setAttribute("d", path);
};
const flatAxes = (which) => [0, 1, 2].filter((axis) => axis !== axisOf(which));

// All voxels of a slice within the brush, which has moved from one spot to another.
const paint = (from, to, which, value) => {
  const [u, v] = flatAxes(which);
  const radius = diameter() / 2;
  const first = sliceOf(which) * steps[axisOf(which)];
  const reach = [u, v].map((axis) => [
    clamp(Math.floor(Math.min(from[axis], to[axis]) - radius / sizes[axis]), 0, dims[axis] - 1),
    clamp(Math.floor(Math.max(from[axis], to[axis]) + radius / sizes[axis]), 0, dims[axis] - 1),
  ]);
  const way = [(to[u] - from[u]) * sizes[u], (to[v] - from[v]) * sizes[v]];
  const length = way[0] ** 2 + way[1] ** 2;
  for (let j = reach[1][0]; j <= reach[1][1]; j++) {
    for (let i = reach[0][0]; i <= reach[0][1]; i++) {
      const x = (i + 0.5 - from[u]) * sizes[u], y = (j + 0.5 - from[v]) * sizes[v];
      const t = length ? clamp((x * way[0] + y * way[1]) / length, 0, 1) : 0;
      const apart = (x - t * way[0]) ** 2 + (y - t * way[1]) ** 2;
      const under = i === Math.floor(to[u]) && j === Math.floor(to[v]);
      if (apart <= radius * radius || under) put(first + i * steps[u] + j * steps[v], value);
    }
  }
};

// All voxels of a slice whose centres a closed line goes round.
const fill = (line, which, value) => {
  const [u, v] = flatAxes(which);
  const first = sliceOf(which) * steps[axisOf(which)];
  for (let j = 0; j < dims[v]; j++) {
    const crossed = [];
    line.forEach((one, n) => {
      const next = line[(n + 1) % line.length];
      const [low, high] = one[v] < next[v] ? [one, next] : [next, one];
      if (low[v] > j + 0.5 || high[v] <= j + 0.5) return;
      const share = (j + 0.5 - low[v]) / (high[v] - low[v]);
      crossed.push([low[u] + share * (high[u] - low[u]), low === one ? 1 : -1]);
    });
    crossed.sort((one, other) => one[0] - other[0]);
    let around = 0;
    crossed.forEach(([from, way], n) => {
      around += way;
      if (!around) return;
      const last = Math.min(Math.ceil(crossed[n + 1][0] - 0.5), dims[u]);
      for (let i = Math.max(Math.ceil(from - 0.5), 0); i < last; i++) {
        put(first + i * steps[u] + j * steps[v], value);
      }
    });
  }
};

// The pointer: it draws on a slice, and whatever else it does is left to NiiVue.
const ring = (point, tile) => { // the brush, as wide as it paints
  const [u, v] = flatAxes(tile.plane);
  const spots = [[-8, -8], [8, 8]].map(([x, y]) => spotAt([point[0] + x, point[1] + y], tile));
  const pixels = (axis) => 16 / Math.max(Math.abs(spots[1][axis] - spots[0][axis]) * sizes[axis], 1e-6);
  const [rx, ry] = [u, v].map((axis) => Math.max((diameter() / 2) * pixels(axis), 1.5));
  const [x, y] = point;
  trace(`M${x - rx},${y}a${rx},${ry} 0 1 0 ${2 * rx},0a${rx},${ry} 0 1 0 ${-2 * rx},0`);
};
const draw = (event) => {
  const point = pointOf(event);
  const spot = spotAt(point, stroke.tile);
  if (tool === "outline") {
    stroke.spots.push(spot);
    stroke.path += `${stroke.path ? "L" : "M"}${point[0]},${point[1]}`;
    trace(stroke.path);
    return;
  }
  const before = turned.length;
  paint(stroke.spots.at(-1) ?? spot, spot, stroke.tile.plane, stroke.value);
  stroke.spots.push(spot);
  show(turned.slice(before));
  ring(point, stroke.tile);
};
const finish = () => {
  if (!stroke) return;
  const { tile, spots, value } = stroke;
  if (tool === "outline") {
    fill(spots, tile.plane, value);
    show(turned);
    trace("");
  }
  stroke = null;
  commit();
  nv.drawScene();
};
stage.addEventListener("pointerdown", (event) => {
  const tile = tileAt(pointOf(event));
  if (isFlat(tile)) pane = tile.plane;
  if (stroke || tool === "move" || event.button || event.ctrlKey || !isFlat(tile)) return;
  if (!isWithin(spotAt(pointOf(event), tile))) return;
  const value = (tool === "eraser") === event.shiftKey ? 1 : 0;
  stroke = { tile, value, spots: [], path: "", pointer: event.pointerId };
  stage.setPointerCapture(event.pointerId);
  canvas.focus({ preventScroll: true });
  draw(event);
}, true);
stage.addEventListener("pointermove", (event) => {
  if (stroke) {
    if (event.pointerId === stroke.pointer) draw(event);
    return;
  }
  const tile = tileAt(pointOf(event));
  stage.toggleAttribute("data-flat", isFlat(tile));
  if (isFlat(tile)) pane = tile.plane;
  if (isFlat(tile) && (tool === "brush" || tool === "eraser")) ring(pointOf(event), tile);
  else trace("");
}, true);
for (const kind of ["pointerup", "pointercancel", "lostpointercapture"]) {
  stage.addEventListener(kind, (event) => event.pointerId === stroke?.pointer && finish(), true);
}
stage.addEventListener("pointerleave", () => stroke || trace(""));
for (const kind of ["mousedown", "mousemove", "touchstart", "touchmove", "wheel"]) {
  stage.addEventListener(kind, (event) => {
    const zooming = kind === "wheel" && event.ctrlKey;
    if (zooming) zoom(event.deltaY < 0 ? 1.1 : 1 / 1.1);
    if (!stroke && !zooming) return;
    event.preventDefault();
    event.stopPropagation();
  }, { capture: true, passive: false });
}

// Views.
const see = (number) => {
  view = number;
  nv.setSliceType(number);
  for (const button of all("[data-view]")) button.ariaPressed = Number(button.dataset.view) === view;
};
const zoom = (by) => { // about the crosshair
  if (view === RENDER) {
    nv.setScale(clamp(nv.volScaleMultiplier * by, 0.5, 4));
    return;
  }
  const [x, y, z, old] = nv.scene.pan2Dxyzmm;
  const now = clamp(old * by, 1, 12);
  const middle = nv.frac2mm(nv.scene.crosshairPos);
  const pan = [x, y, z].map((mm, axis) => (now === 1 ? 0 : mm + (old - now) * middle[axis]));
  nv.setPan2Dxyzmm([...pan, now]);
};
const whole = () => {
  nv.setPan2Dxyzmm([0, 0, 0, 1]);
  nv.setScale(1);
};
const setOpacity = () => {
  const share = find("opacity").valueAsNumber;
  find("opacity-said").textContent = `${share} %`;
  nv.setDrawOpacity(share / 100);
};
const setSize = () => {
  find("size-said").textContent = `${Number(diameter().toPrecision(3))} mm`;
  find("size").ariaValueText = find("size-said").textContent;
  if (!stroke) trace("");
};
const setContrast = () => {
  const [low, high] = ["darkest", "brightest"].map((id) => find(id).valueAsNumber);
  if (!(low < high)) return;
  [nv.volumes[0].cal_min, nv.volumes[0].cal_max] = [low, high];
  nv.updateGLVolume();
};

// Fill between two slices: signed distances from the border, mixed, tell where it runs in between.
let mark = null; // plane and slice
const nearest = (inside, value, [w, h], [dx, dy]) => { // mm to the closest such voxel of a slice
  const squares = new Float64Array(w * h).fill(Infinity);
  for (let x = 0; x < w; x++) {
    for (const down of [false, true]) {
      let steps = Infinity;
      for (let n = 0; n < h; n++) {
        const at = x + w * (down ? h - 1 - n : n);
        steps = inside[at] === value ? 0 : steps + 1;
        squares[at] = Math.min(squares[at], (steps * dy) ** 2);
      }
    }
  }
  return squares.map((_, at) => {
    const row = at - (at % w);
    let least = Infinity;
    for (let x = 0; x < w; x++) {
      const square = squares[row + x] + ((at - row - x) * dx) ** 2;
      if (square < least) least = square;
    }
    return Math.sqrt(least);
  });
};
const gridOf = (which) => {
  const [u, v] = flatAxes(which);
  const axis = axisOf(which);
  return {
    extent: [dims[u], dims[v]],
    edges: [sizes[u], sizes[v]],
    voxel: (slice, at) =>
      slice * steps[axis] + (at % dims[u]) * steps[u] + Math.floor(at / dims[u]) * steps[v],
  };
};
const signed = (slice, { extent, edges, voxel }) => { // mm from the border, below 0 inside
  const inside = new Uint8Array(extent[0] * extent[1]).map((_, at) => bitmap[voxel(slice, at)]);
  if (!inside.includes(1)) return null;
  if (!inside.includes(0)) return new Float64Array(inside.length).fill(-1e6);
  const outer = nearest(inside, 1, extent, edges);
  const inner = nearest(inside, 0, extent, edges);
  return outer.map((mm, at) => mm - inner[at]);
};
const between = (text) => { find("between").textContent = text; };
const markFrom = () => {
  if (view === RENDER) return between("Choose a view with slices first.");
  mark = { plane: plane(), slice: sliceOf(plane()) };
  find("to").disabled = false;
  return between(`From ${PLANES[mark.plane]} slice ${mark.slice + 1}. Go to another ` +
    `${PLANES[mark.plane]} slice with a mask, and choose To here.`);
};
const markTo = () => {
  if (!mark || stroke) return null;
  const name = PLANES[mark.plane];
  const [first, last] = [mark.slice, sliceOf(mark.plane)].sort((one, other) => one - other);
  if (view < 3 && view !== mark.plane) return between(`The first slice is ${name}: show that plane.`);
  if (last - first < 2) return between(`No slice lies between ${name} slices ${first + 1} and ${last + 1}.`);
  const grid = gridOf(mark.plane);
  const ends = [first, last].map((slice) => signed(slice, grid));
  const missing = [first, last].find((_, n) => !ends[n]);
  if (missing !== undefined) return between(`There is no mask on ${name} slice ${missing + 1}.`);
  for (let slice = first + 1; slice < last; slice++) {
    const share = (slice - first) / (last - first);
    ends[0].forEach((mm, at) => {
      put(grid.voxel(slice, at), (1 - share) * mm + share * ends[1][at] < 0 ? 1 : 0);
    });
  }
  show(turned);
  commit();
  mark = null;
  find("to").disabled = true;
  return between(`Filled ${last - first - 1} ${name} slices, from ${first + 2} to ${last}.`);
};

// Buttons and keys.
const resize = (by) => {
  find("size").valueAsNumber += by;
  setSize();
};
const undo = () => shift(done, undone);
const redo = () => shift(undone, done);
const keys = {
  v: () => use("move"), b: () => use("brush"), e: () => use("eraser"), o: () => use("outline"),
  "[": () => resize(-1), "]": () => resize(1), z: undo, y: redo, f: markFrom, g: markTo,
  1: () => see(3), 2: () => see(0), 3: () => see(1), 4: () => see(2), 5: () => see(RENDER),
  "+": () => zoom(1.25), "-": () => zoom(0.8), 0: whole,
};
const arrows = { ArrowUp: [1, 0, 1], ArrowRight: [1, 1, 0], ArrowDown: [-1, 0, -1], ArrowLeft: [-1, -1, 0] };
const onKey = (event) => {
  const key = event.key.toLowerCase();
  const command = event.ctrlKey || event.metaKey;
  const writes = event.target.matches("input[type=number]") && !(command && key === "s");
  if (event.altKey || stroke || writes) return;
  if (command) {
    const act = { s: save, z: event.shiftKey ? redo : undo, y: redo }[key];
    if (!act) return;
    act();
  } else if (event.target === canvas && event.key in arrows) {
    const [by, turn, lift] = arrows[event.key];
    const { renderAzimuth, renderElevation } = nv.scene;
    if (view === RENDER) {
      nv.setRenderAzimuthElevation(renderAzimuth + 5 * turn, renderElevation + 5 * lift);
    } else moveSlice(by);
  } else if (Object.hasOwn(keys, key)) keys[key]();
  else return;
  event.preventDefault();
};
const listen = () => {
  document.addEventListener("keydown", onKey, true);
  const clicks = { undo, redo, save, from: markFrom, to: markTo, whole };
  for (const [id, act] of Object.entries(clicks)) find(id).addEventListener("click", () => act());
  find("closer").addEventListener("click", () => zoom(1.25));
  find("farther").addEventListener("click", () => zoom(0.8));
  find("empty").addEventListener("click", () => replace(() => 0));
  find("load").addEventListener("change", async (event) => {
    const { target } = event;
    if (target.files[0]) await load(target.files[0]);
    target.value = "";
  });
  for (const button of all("button[data-tool]")) {
    button.addEventListener("click", () => use(button.dataset.tool));
  }
  for (const button of all("[data-view]")) {
    button.addEventListener("click", () => see(Number(button.dataset.view)));
  }
  const inputs = { size: setSize, opacity: setOpacity, darkest: setContrast, brightest: setContrast };
  for (const [id, act] of Object.entries(inputs)) find(id).addEventListener("input", act);
};

const begin = (mask) => { // show it, and its middle, or that of the scan if it is empty
  const [low, high, sums] = [[...dims], [-1, -1, -1], [0, 0, 0]];
  bitmap.set(mask);
  for (let k = 0, n = 0; k < dims[2]; k++) {
    for (let j = 0; j < dims[1]; j++) {
      let [first, last, inside] = [dims[0], -1, 0];
      for (let i = 0; i < dims[0]; i++) {
        if (!bitmap[n++]) continue;
        if (i < first) first = i;
        last = i;
        inside++;
        sums[0] += i;
      }
      if (!inside) continue;
      count += inside;
      sums[1] += inside * j;
      sums[2] += inside * k;
      [first, j, k].forEach((at, axis) => { low[axis] = Math.min(low[axis], at); });
      [last, j, k].forEach((at, axis) => { high[axis] = Math.max(high[axis], at); });
    }
  }
  nv.scene.crosshairPos = dims.map((length, axis) =>
    (Math.floor(count ? sums[axis] / count : length / 2) + 0.5) / length);
  if (count) showBox({ low, high });
};

const start = async () => {
  find("save-as").textContent = facts.save_as;
  find("where").textContent = facts.where;
  if (!document.createElement("canvas").getContext("webgl2")) {
    say("This browser cannot show the scan: WebGL 2 is missing or switched off. Use a current " +
      "Chrome, Edge, Firefox or Safari, and allow hardware acceleration in its settings.");
    for (const control of all(".editor :is(button, input)")) control.disabled = true;
    return false;
  }
  const bytes = ["scan", "mask"].map((id) => unpack(fromBase64(read(id))));
  const [scan, mask] = await Promise.all([...bytes, nv.attachToCanvas(canvas)]);
  dropGradients();
  nv.setDrawColormap({ R: [0, 255], G: [0, 176], B: [0, 0], A: [0, 255], labels: ["", "brain"] });
  nv.addVolume(await niivue.NVImage.new(scan.buffer, "scan.nii", "gray", 1, null, 0, 255));
  nv.onLocationChange = tellPlace;
  nv.drawTexture = nv.r8Tex(nv.drawTexture, nv.gl.TEXTURE7, [3, ...dims], true);
  nv.drawSmoothedTexture = nv.r8Tex(null, nv.gl.TEXTURE10, [3, ...dims], true);
  for (const name of ["TEXTURE_MIN_FILTER", "TEXTURE_MAG_FILTER"]) {
    nv.gl.texParameteri(nv.gl.TEXTURE_3D, nv.gl[name], nv.gl.LINEAR);
  }
  nv.drawBitmap = bitmap;
  nv.drawRimOpacity = 1;
  begin(mask);
  listen();
  setOpacity();
  setSize();
  tell();
  tellPlace();
  return true;
};
const dot = (x, y, z) => {
  put(x + y * steps[1] + z * steps[2], 1);
  show(turned);
  commit();
};
window.editor = { nv, save, paint: dot, bitmap: () => bitmap.slice(), ready: start() }; // for tests
