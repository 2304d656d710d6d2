"use strict";
(function (root) {
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const canvas = root.querySelector(".map-stage canvas"), pen = canvas.getContext("2d");
  const panel = root.querySelector(".map-panel"), status = root.querySelector(".map-status");
  const tools = root.querySelector(".map-tools");
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const N = data.n, K = data.k, CELLS = 64, THUMB = 30, LABELS = 80, TRIED = 2000, FOUND = 8;
  const LEAST = N > 30000 ? 1 : 1.6;  // radius of a dot, in pixels: many are drawn smaller, which is quicker, too

  function typed(kind, text) {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new kind(bytes.buffer);
  }
  const Index = data.bytes_per_index === 2 ? Uint16Array : Uint32Array;
  const groups = typed(Uint8Array, data.groups), wrong = typed(Uint8Array, data.wrong), examples = data.examples;
  const lines = data.lines.map((line) => typed(Index, line));  // indices of words, one array per line
  const layers = data.layers.map((layer) => {
    const raw = typed(Uint16Array, layer.points), at = new Float32Array(2 * N);
    for (let i = 0; i < 2 * N; i++) at[i] = raw[i] / 65535;
    return { name: layer.name, at, near: typed(Index, layer.near) };
  });
  const order = typed(Index, data.order);  // in which points are drawn: no class covers all others

  let now = layers.length - 1, at = layers[now].at.slice();
  let width = 1, height = 1, ratio = 1, side = 1;
  let zoom = 1, left = 0, top = 0;  // the view: a point p of the unit square is drawn at left + p * side * zoom
  let hover = -1, chosen = data.selected, only = -1, images = false, ready = false;
  let waiting = 0, moving = null, colors = null, dots = [], names = [], grid = null;
  let frame = null, pixels = null;  // what is put on the canvas, 4 bytes a pixel
  const cache = new Map();  // images as they are drawn

  // ---- a spatial index: a grid of cells, each with its points -----------------------------------------------------
  function indexed() {
    const starts = new Uint32Array(CELLS * CELLS + 1), cell = new Uint16Array(N), inside = new Uint32Array(N);
    const of = (v) => Math.min(CELLS - 1, Math.max(0, Math.floor(v * CELLS)));
    for (let i = 0; i < N; i++) starts[(cell[i] = of(at[2 * i + 1]) * CELLS + of(at[2 * i])) + 1]++;
    for (let c = 0; c < CELLS * CELLS; c++) starts[c + 1] += starts[c];
    const next = starts.slice();
    for (let i = 0; i < N; i++) inside[next[cell[i]]++] = i;
    return { starts, inside, of };
  }
  function nearest(x, y, reach) {  // to a position in pixels; -1 where none is within reach
    const s = side * zoom, u = (x - left) / s, v = (y - top) / s, r = reach / s;
    grid = grid || indexed();
    let best = -1, least = r * r;
    for (let row = grid.of(v - r); row <= grid.of(v + r); row++) {
      for (let column = grid.of(u - r); column <= grid.of(u + r); column++) {
        const c = row * CELLS + column;
        for (let j = grid.starts[c]; j < grid.starts[c + 1]; j++) {
          const i = grid.inside[j], dx = at[2 * i] - u, dy = at[2 * i + 1] - v, d = dx * dx + dy * dy;
          if (d < least && (only < 0 || groups[i] === only)) { least = d; best = i; }
        }
      }
    }
    return best;
  }

  // ---- drawing ----------------------------------------------------------------------------------------------------
  const atlas = new Image();
  if (data.atlas) { atlas.onload = () => { ready = true; show(); draw(); }; atlas.src = data.atlas.src; }

  function radius() { return Math.min(7, Math.max(LEAST, Math.min(5, 0.12 * side / Math.sqrt(N))) * Math.sqrt(Math.sqrt(zoom))); }
  function themed() {
    const style = getComputedStyle(document.documentElement), get = (name) => style.getPropertyValue(name).trim();
    colors = { ground: get("--paper"), ink: get("--ink"), soft: get("--soft"), accent: get("--accent") };
    dots = [];
    if (pixels) draw();
  }
  function rgb(color) {
    pen.fillStyle = "#000";
    pen.fillStyle = color;  // whatever its spelling, "#rrggbb" comes back
    return [1, 3, 5].map((k) => parseInt(pen.fillStyle.slice(k, k + 2), 16));
  }
  // Dots are written as pixels: ten thousand canvas calls per frame would be too slow. A dot is the list of its
  // pixels and their colors; its soft edge is mixed with the ground, so that a thin rim separates it from dots below.
  function dot(group, mistaken, faded) {
    const r = Math.max(Math.min(1.5, LEAST), Math.round(2 * radius() * ratio) / 2), key = 4 * group + 2 * mistaken + faded;
    if (dots.r !== r || dots.wide !== canvas.width) { dots = []; dots.r = r; dots.wide = canvas.width; }
    if (dots[key]) return dots[key];
    const fill = rgb(data.colors[group]), ground = rgb(colors.ground), ink = rgb(colors.ink), line = mistaken ? 1.4 * ratio : 0;
    const reach = Math.ceil(r + line), shift = [], color = [];
    for (let y = -reach; y <= reach; y++) {
      for (let x = -reach; x <= reach; x++) {
        const d = Math.hypot(x, y), share = Math.min(1, r + line + 0.5 - d), rim = Math.min(1, Math.max(0, d - r + 0.5));
        if (share <= 0) continue;
        const mixed = [0, 1, 2].map((c) => {
          const own = line ? fill[c] + rim * (ink[c] - fill[c]) : fill[c];
          return Math.round(ground[c] + share * (faded ? 0.16 : 1) * (own - ground[c]));
        });
        shift.push(y * canvas.width + x);
        color.push((255 << 24) | (mixed[2] << 16) | (mixed[1] << 8) | mixed[0]);
      }
    }
    return (dots[key] = { reach, shift: Int32Array.from(shift), color: Int32Array.from(color) });
  }
  function draw() { if (!waiting) waiting = requestAnimationFrame(paint); }
  function paint(time) {
    waiting = 0;
    if (moving) glide(time);
    const [red, green, blue] = rgb(colors.ground);
    pixels.fill((255 << 24) | (blue << 16) | (green << 8) | red);
    if (only >= 0) points(true);
    points(false);
    pen.putImageData(frame, 0, 0);
    if (images && ready) pictures();
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (!data.of_words) words();
    marks();
    if (data.of_words) labels();
    if (moving) draw();
  }
  function points(faded) {
    const s = side * zoom * ratio, x0 = left * ratio, y0 = top * ratio, w = canvas.width, h = canvas.height;
    const kinds = [];  // of dots, by group and mark: found once a frame
    for (let j = 0; j < N; j++) {
      const i = order[j], kind = 2 * groups[i] + wrong[i];
      if (only >= 0 && (groups[i] !== only) !== faded) continue;
      const x = Math.round(x0 + at[2 * i] * s), y = Math.round(y0 + at[2 * i + 1] * s);
      const d = kinds[kind] || (kinds[kind] = dot(groups[i], wrong[i], faded ? 1 : 0)), e = d.reach;
      if (x < e || y < e || x >= w - e || y >= h - e) continue;  // whole dots only: no pixel of a row runs into the next
      const base = y * w + x, shift = d.shift, color = d.color;
      for (let k = 0; k < shift.length; k++) pixels[base + shift[k]] = color[k];
    }
  }
  function pictures() {  // one per cell; cells move with the map, so that panning changes none of them
    const s = side * zoom, cell = Math.round((THUMB + 4) * ratio) / ratio;
    const c0 = Math.floor(-left / cell) - 1, r0 = Math.floor(-top / cell) - 1;
    const across = Math.ceil(width / cell) + 3, down = Math.ceil(height / cell) + 3, taken = new Uint8Array(across * down);
    const x0 = Math.round(left * ratio), y0 = Math.round(top * ratio), step = cell * ratio;
    pen.setTransform(1, 0, 0, 1, 0, 0);
    for (let j = 0; j < N; j++) {
      const i = order[j];
      if (only >= 0 && groups[i] !== only) continue;
      const column = Math.floor(at[2 * i] * s / cell) - c0, row = Math.floor(at[2 * i + 1] * s / cell) - r0;
      if (column < 0 || row < 0 || column >= across || row >= down || taken[row * across + column]) continue;
      taken[row * across + column] = 1;
      const made = framed(i);
      pen.drawImage(made, Math.round(x0 + (column + c0 + 0.5) * step - made.width / 2),
        Math.round(y0 + (row + r0 + 0.5) * step - made.height / 2));
    }
  }
  function framed(i) {  // an image with its class's color around it, cached for the next frames
    if (cache.has(i)) return cache.get(i);
    if (cache.size >= 2000) cache.delete(cache.keys().next().value);  // the one that was made first
    const made = document.createElement("canvas"), size = THUMB * ratio;
    made.width = made.height = Math.round(size + 3 * ratio);
    const p = made.getContext("2d");
    p.setTransform(ratio, 0, 0, ratio, 0, 0);
    thumb(p, i, THUMB / 2 + 1.5, THUMB / 2 + 1.5, THUMB);
    cache.set(i, made);
    return made;
  }
  function thumb(p, i, x, y, size) {
    const a = data.atlas, f = size / Math.max(a.width, a.height), w = a.width * f, h = a.height * f;
    p.imageSmoothingEnabled = !a.hard || f * ratio < 1;
    p.fillStyle = data.colors[groups[i]];
    p.fillRect(x - w / 2 - 1.5, y - h / 2 - 1.5, w + 3, h + 3);
    p.drawImage(atlas, (i % a.columns) * a.width, Math.floor(i / a.columns) * a.height, a.width, a.height,
      x - w / 2, y - h / 2, w, h);
  }
  function words() {
    if (!names.length || images) return;
    pen.font = "650 14px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.lineJoin = "round";
    pen.lineWidth = 4;
    const written = [];
    for (const { group, i } of names) {
      if (only >= 0 && group !== only) continue;
      const name = data.names[group], word = name.length > 16 ? name.slice(0, 15) + "…" : name;
      const [x, y] = place(i), half = pen.measureText(word).width / 2 + 3;
      if (written.some((w) => Math.abs(w.x - x) < w.half + half && Math.abs(w.y - y) < 17)) continue;
      written.push({ x, y, half });
      pen.strokeStyle = colors.ground; pen.strokeText(word, x, y);
      pen.fillStyle = colors.ink; pen.fillText(word, x, y);
    }
  }
  const widths = new Float32Array(data.of_words ? N : 0);  // of words as they are written
  // Words themselves, where there is room: the selected one, its neighbors, then the first ones (the most frequent).
  function labels() {
    pen.font = "600 13px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.lineJoin = "round";
    pen.lineWidth = 3;
    const cell = 7, across = Math.ceil(width / cell), taken = new Uint8Array(across * Math.ceil(height / cell));
    const first = chosen < 0 ? [] : [chosen, ...neighbors(chosen)], s = side * zoom, bar = tools.offsetLeft - 4;
    for (let k = -first.length, written = 0, tried = 0; k < N && written < LABELS && tried < TRIED; k++) {
      const i = k < 0 ? first[k + first.length] : k;
      const x = left + at[2 * i] * s, y = top + at[2 * i + 1] * s - radius() - 9;
      if (x < 0 || y < 2 * cell || x >= width || y >= height - 2 * cell) continue;
      const row = Math.floor(y / cell) - 1, own = (row + 1) * across + Math.floor(x / cell);
      if (taken[own]) continue;
      tried++;
      const half = (widths[i] = widths[i] || pen.measureText(examples[i]).width) / 2 + 4;
      if (x < half || x > width - half || (y < 50 && x + half > bar)) continue;
      const from = Math.floor((x - half) / cell), to = Math.floor((x + half) / cell) + 1;
      const rows = [0, 1, 2].map((below) => (row + below) * across);  // a line of text is three cells high
      if (rows.some((r) => taken.subarray(r + from, r + to).includes(1))) continue;
      for (const r of rows) taken.fill(1, r + from, r + to);
      written++;
      pen.strokeStyle = colors.ground; pen.strokeText(examples[i], x, y);
      pen.fillStyle = i === chosen ? colors.accent : colors.ink; pen.fillText(examples[i], x, y);
    }
  }
  function place(i) { return [left + at[2 * i] * side * zoom, top + at[2 * i + 1] * side * zoom]; }
  function ring(i, color, line) {
    const [x, y] = place(i);
    pen.beginPath(); pen.arc(x, y, radius() + 3, 0, 2 * Math.PI);
    pen.lineWidth = line; pen.strokeStyle = color; pen.stroke();
  }
  function marks() {
    if (chosen >= 0) {
      const near = neighbors(chosen), [x, y] = place(chosen);
      pen.lineWidth = 1;
      pen.strokeStyle = colors.accent;
      for (const j of near) { pen.beginPath(); pen.moveTo(x, y); pen.lineTo(...place(j)); pen.stroke(); ring(j, colors.accent, 1.5); }
      ring(chosen, colors.accent, 3);
    }
    if (hover >= 0 && hover !== chosen) ring(hover, colors.ink, 2);
  }
  function named() {  // a class's name is on the member nearest to the median of its members; large classes first
    names = [];
    if (data.names.length < 2) return;
    for (let group = 0; group < Math.min(20, data.names.length); group++) {  // later ones have no color of their own
      const own = [];
      for (let i = 0; i < N; i++) if (groups[i] === group) own.push(i);
      if (own.length < 3) continue;
      const middle = [0, 1].map((axis) => Float32Array.from(own, (i) => at[2 * i + axis]).sort()[own.length >> 1]);
      const far = (i) => (at[2 * i] - middle[0]) ** 2 + (at[2 * i + 1] - middle[1]) ** 2;
      names.push({ group, size: own.length, i: own.reduce((best, i) => (far(i) < far(best) ? i : best), own[0]) });
    }
    names.sort((a, b) => b.size - a.size);
  }

  // ---- the view ---------------------------------------------------------------------------------------------------
  function fit() {
    zoom = 1;
    left = (width - side) / 2;
    top = (height - side) / 2;
    canvas.style.touchAction = "pan-y";
    draw();
  }
  function resized() {
    const middle = [(width / 2 - left) / (side * zoom), (height / 2 - top) / (side * zoom)], first = side === 1;
    width = canvas.clientWidth;
    height = canvas.clientHeight;
    ratio = Math.min(2, devicePixelRatio || 1);
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    frame = pen.createImageData(canvas.width, canvas.height);
    pixels = new Int32Array(frame.data.buffer);
    cache.clear();
    side = Math.max(40, Math.min(width, height) - 24);
    if (first || zoom === 1) return fit();
    left = width / 2 - middle[0] * side * zoom;
    top = height / 2 - middle[1] * side * zoom;
    draw();
  }
  function zoomed(factor, x = width / 2, y = height / 2) {
    const next = Math.min(64, Math.max(1, zoom * factor)), f = next / zoom;
    if (next === 1) return fit();
    left = x - (x - left) * f;
    top = y - (y - top) * f;
    zoom = next;
    canvas.style.touchAction = "none";  // one finger moves a map that is zoomed into, and else the page
    bounded();
  }
  function bounded() {  // some of the map stays visible
    const s = side * zoom, edge = 60;
    left = Math.min(width - edge, Math.max(edge - s, left));
    top = Math.min(height - edge, Math.max(edge - s, top));
    draw();
  }
  function switched(k) {
    if (k === now) return;
    now = k;
    root.querySelectorAll(".map-layers button").forEach((b, i) => b.setAttribute("aria-pressed", String(i === k)));
    if (calm.matches) { at = layers[k].at.slice(); settled(); } else moving = { from: at.slice(), to: layers[k].at, start: 0 };
    show();
    announce();
    draw();
  }
  function glide(time) {
    moving.start = moving.start || time;
    const t = Math.min(1, (time - moving.start) / 500), e = t * t * (3 - 2 * t);
    for (let i = 0; i < 2 * N; i++) at[i] = moving.from[i] + e * (moving.to[i] - moving.from[i]);
    if (t === 1) { moving = null; settled(); } else grid = null;
  }
  function settled() { grid = null; named(); draw(); }

  // ---- one example and its neighbors ------------------------------------------------------------------------------
  function neighbors(i) { return layers[now].near.subarray(K * i, K * (i + 1)); }
  function captions(i) { return data.of_words ? [examples[i]] : lines.map((line) => data.words[line[i]]).filter(Boolean); }
  function picture(i, size) {
    const made = document.createElement("canvas"), a = data.atlas, f = size / Math.max(a.width, a.height);
    made.width = Math.round(a.width * f * ratio);
    made.height = Math.round(a.height * f * ratio);
    made.style.width = made.width / ratio + "px";
    made.setAttribute("role", "img");
    made.setAttribute("aria-label", examples[i]);
    const p = made.getContext("2d");
    p.imageSmoothingEnabled = !a.hard;
    if (ready) p.drawImage(atlas, (i % a.columns) * a.width, Math.floor(i / a.columns) * a.height, a.width, a.height, 0, 0, made.width, made.height);
    return made;
  }
  function line(kind, text) {
    const made = document.createElement(kind);
    made.textContent = text;
    return made;
  }
  function show() {  // the panel: the example pointed at, else the selected one
    const i = hover >= 0 ? hover : chosen;
    panel.replaceChildren();
    if (i < 0) { panel.append(line("p", data.hint)); return; }
    const about = document.createElement("div");
    about.className = "map-about";
    if (data.atlas) about.append(picture(i, 112));
    const facts = document.createElement("div");
    captions(i).forEach((text, k) => facts.append(line(k ? "span" : "b", text)));
    if (wrong[i]) facts.firstChild.className = "bad";
    if (!data.of_words) facts.append(line("span", examples[i]));
    about.append(facts);
    panel.append(about);
    const near = data.of_words ? "nearest words" : "nearest neighbors in this layer";
    if (i !== chosen || !K) { if (K) panel.append(line("p", `Click to see its ${near}.`)); return; }
    panel.append(line("p", near[0].toUpperCase() + near.slice(1) + ":"));
    const list = document.createElement("div");
    list.className = "map-near";
    for (const j of neighbors(i)) list.append(button(j));
    panel.append(list);
  }
  function button(j) {
    const made = document.createElement("button");
    made.type = "button";
    made.style.setProperty("--own", data.colors[groups[j]]);
    made.append(data.atlas ? picture(j, 44) : line("span", captions(j)[0]));
    if (wrong[j]) made.className = "bad";
    made.title = (wrong[j] ? "misclassified: " : "") + captions(j).join(", ");
    made.setAttribute("aria-label", examples[j] + ", " + made.title);
    made.addEventListener("click", () => { choose(j); canvas.focus({ preventScroll: true }); });
    return made;
  }
  function choose(i) {
    chosen = i;
    hover = -1;
    show();
    announce();
    draw();
  }
  // ---- a word that is searched for --------------------------------------------------------------------------------
  const search = root.querySelector(".map-search input"), found = root.querySelector(".map-found");
  function matches(text) {  // the word itself, words that begin with it, words that hold it: the most frequent first
    const wanted = text.trim().toLowerCase(), kinds = [[], [], []];
    if (!wanted) return [];
    lowered = lowered || examples.map((word) => word.toLowerCase());
    for (let i = 0; i < N && kinds[0].length + kinds[1].length < FOUND; i++) {
      const where = lowered[i].indexOf(wanted);
      if (where < 0) continue;
      const kind = where > 0 ? 2 : lowered[i].length > wanted.length ? 1 : 0;
      if (kinds[kind].length < FOUND) kinds[kind].push(i);
    }
    return kinds.flat().slice(0, FOUND);
  }
  function go(i) {  // to a point, at the middle of a view that is close enough to see what is around it
    zoom = Math.max(zoom, Math.min(64, Math.sqrt(N) / 8, 12));
    if (zoom > 1) { left = width / 2 - at[2 * i] * side * zoom; top = height / 2 - at[2 * i + 1] * side * zoom; bounded(); }
    choose(i);
  }
  let lowered = null;  // the words in lower case, once one is searched for
  if (search) {
    search.addEventListener("input", () => {
      const list = matches(search.value);
      found.replaceChildren(...list.map((i) => {
        const made = line("button", examples[i]);
        made.type = "button";
        made.addEventListener("click", () => go(i));
        return made;
      }));
      if (search.value.trim() && !list.length) found.append(line("span", "no such word on the map"));
    });
    search.addEventListener("keydown", (event) => {
      const [first] = event.key === "Enter" ? matches(search.value) : [];
      if (first !== undefined) { event.preventDefault(); go(first); }
    });
  }
  function announce() {  // for screen readers
    const where = "Map of " + layers[now].name + ". ";
    status.textContent = where + (chosen < 0 ? "No example is selected." : examples[chosen].replace(/^example /, "Example ") + ", " + captions(chosen).join(", ")
      + (K ? ". Nearest: " + Array.from(neighbors(chosen), (j) => captions(j)[0]).join("; ") : "") + ".");
  }
  function step(dx, dy) {  // to the nearest example in a direction
    if (chosen < 0) return choose(nearest(width / 2, height / 2, 1e6));
    let best = -1, least = Infinity;
    for (let i = 0; i < N; i++) {
      if (only >= 0 && groups[i] !== only) continue;
      const x = at[2 * i] - at[2 * chosen], y = at[2 * i + 1] - at[2 * chosen + 1], along = x * dx + y * dy;
      const across = Math.abs(x * dy - y * dx);
      if (along > 1e-6 && across <= along && along + 2 * across < least) { least = along + 2 * across; best = i; }
    }
    if (best < 0) return;
    choose(best);
    const [x, y] = place(best);
    if (x < 20 || y < 20 || x > width - 20 || y > height - 20) { left += width / 2 - x; top += height / 2 - y; bounded(); }
  }

  // ---- pointer and keys -------------------------------------------------------------------------------------------
  const fingers = new Map();
  let went = 0, gap = 0;
  function spot(event) { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; }
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, spot(event));
    if (fingers.size === 1) went = 0;
    gap = spread();
  });
  function spread() {
    if (fingers.size < 2) return 0;
    const [a, b] = [...fingers.values()];
    return Math.hypot(a[0] - b[0], a[1] - b[1]);
  }
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = spot(event), before = fingers.get(event.pointerId);
    if (!before) return event.pointerType === "mouse" ? point(nearest(x, y, 14)) : undefined;
    fingers.set(event.pointerId, [x, y]);
    went += Math.abs(x - before[0]) + Math.abs(y - before[1]);
    if (went < 5) return;
    left += (x - before[0]) / fingers.size;
    top += (y - before[1]) / fingers.size;
    if (fingers.size === 2 && gap) {
      const [a, b] = [...fingers.values()], now = spread();
      zoomed(now / gap, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
      gap = now;
    }
    bounded();
  });
  function point(i) {
    if (i === hover) return;
    hover = i;
    canvas.style.cursor = i < 0 ? "grab" : "pointer";
    show();
    draw();
  }
  canvas.addEventListener("pointerup", (event) => {
    const [x, y] = spot(event), alone = fingers.size === 1;
    fingers.delete(event.pointerId);
    gap = spread();
    if (alone && went < 5) choose(nearest(x, y, event.pointerType === "mouse" ? 14 : 26));
  });
  canvas.addEventListener("pointercancel", (event) => { fingers.delete(event.pointerId); gap = spread(); });
  canvas.addEventListener("pointerleave", () => { if (!fingers.size) point(-1); });
  canvas.addEventListener("wheel", (event) => {  // else it scrolls the page
    if (!event.ctrlKey && document.activeElement !== canvas) return;
    event.preventDefault();
    zoomed(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0016)), ...spot(event));
  }, { passive: false });
  canvas.addEventListener("dblclick", (event) => zoomed(2, ...spot(event)));
  const keys = {
    ArrowLeft: () => step(-1, 0), ArrowRight: () => step(1, 0), ArrowUp: () => step(0, -1), ArrowDown: () => step(0, 1),
    "+": () => zoomed(1.5), "=": () => zoomed(1.5), "-": () => zoomed(1 / 1.5), 0: fit, Escape: () => choose(-1),
  };
  canvas.addEventListener("keydown", (event) => {
    if (!keys[event.key] || event.metaKey || event.altKey || event.ctrlKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  tools.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.value === "in") zoomed(1.6);
    if (button.value === "out") zoomed(1 / 1.6);
    if (button.value === "all") fit();
    if (button.value === "images") { images = !images; button.setAttribute("aria-pressed", String(images)); draw(); }
  });
  root.querySelectorAll(".map-layers button").forEach((b, k) => b.addEventListener("click", () => switched(k)));
  const legend = [...root.querySelectorAll(".map-legend button")];
  legend.forEach((b) => b.addEventListener("click", () => {
    const group = Number(b.value);
    only = only === group ? -1 : group;
    for (const other of legend) other.setAttribute("aria-pressed", String(Number(other.value) === only));
    draw();
  }));
  new MutationObserver(themed).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", themed);
  new ResizeObserver(resized).observe(canvas);
  root.map = {  // for tests and benchmarks
    paint: () => { if (waiting) cancelAnimationFrame(waiting); paint(performance.now()); },
    view: () => ({ zoom, left, top, chosen, hover, layer: now, images, only, moving: Boolean(moving) }),
    place, pan: (x, y) => { left += x; top += y; bounded(); }, zoom: zoomed,
  };
  root.classList.add("live");
  themed();
  resized();
  named();
  show();
})(document.currentScript.parentElement);
