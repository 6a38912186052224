// The page's script: charts by uPlot, the table of rollouts by TanStack Table,
// mathematics by Temml. What a policy or a data set wrote becomes text nodes only.
'use strict';
(() => {
  const root = document.documentElement;
  root.classList.add('js');
  const find = (id) => document.getElementById(id);
  const HIDDEN = /[\p{C}\p{Zl}\p{Zp}]/u;
  const COLORS = ['#3b82f6', '#ef7c1a', '#22a35a', '#d64545', '#9467bd', '#a0785a',
    '#e377c2', '#7f8c8d', '#b5a300', '#17a2b8', '#5b6ee1', '#c05c8a'];
  const TONES = { kept: '#22a35a', dropped: '#ef7c1a', mean: '#d64545' };
  const GRADES = ['wrong', 'right', 'invalid', 'ungraded'];
  const ROW = 30; // pixels, as in report.css
  const count = (n) => n.toLocaleString('en-US');

  // ---- elements and texts --------------------------------------------------------

  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === 'text') element.textContent = value;
      else if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
      else if (value !== undefined && value !== false) element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }
  const code = (character) =>
    'U+' + character.codePointAt(0).toString(16).toUpperCase().padStart(4, '0');
  const seen = (character) =>
    character === '\n' || character === '\t' || !HIDDEN.test(character);
  // Text of one line, for cells and choices.
  function line(text) {
    text = String(text);
    if (!HIDDEN.test(text)) return text;
    return Array.from(text, (c) =>
      c === '\n' || c === '\t' ? ' ' : seen(c) ? c : `[${code(c)}]`).join('');
  }
  // Text as it is; a character that is not seen is its number in a frame.
  function addText(node, text) {
    if (!HIDDEN.test(text)) return node.append(text);
    let plain = '';
    for (const c of text) {
      if (seen(c)) { plain += c; continue; }
      node.append(plain, make('span', { class: 'u', text: code(c) }));
      plain = '';
    }
    node.append(plain);
  }
  // Bounded, so that what is never closed costs little.
  const MATH = new RegExp([
    /\$\$([^]{1,2000}?)\$\$/, /\\\[([^]{1,2000}?)\\\]/, /\\\(([^]{1,1000}?)\\\)/,
    /(?<![\\$])\$(?![\s$])((?:[^$\n\\]|\\.){1,500}?)(?<![\s\\])\$(?![\d$])/,
  ].map((each) => each.source).join('|'), 'g');
  let mathematics = true;
  function addRich(node, text) {
    if (!mathematics || !window.temml) return addText(node, text);
    let from = 0, left = 200;
    for (const match of text.matchAll(MATH)) {
      if (!left--) break;
      const formula = match.slice(1).find((x) => x !== undefined);
      const holder = make('span');
      try {
        if ([...formula].some((c) => !seen(c))) continue;
        temml.render(formula, holder, {
          displayMode: match[1] !== undefined || match[2] !== undefined,
          throwOnError: true, trust: false, maxExpand: 100, maxSize: [10, 200],
          macros: {},
        });
      } catch { continue; } // as it was written
      addText(node, text.slice(from, match.index));
      holder.title = match[0];
      node.append(holder);
      from = match.index + match[0].length;
    }
    addText(node, text.slice(from));
  }
  const textBox = (text) => {
    const box = make('div', { class: 'text', tabindex: 0 });
    addRich(box, text);
    return box;
  };

  // ---- packed data ---------------------------------------------------------------

  async function unpack(id) {
    const letters = atob(find(id).textContent);
    const bytes = new Uint8Array(letters.length);
    for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
    const stream = new Blob([bytes]).stream()
      .pipeThrough(new DecompressionStream('deflate'));
    return JSON.parse(await new Response(stream).text());
  }

  // ---- charts --------------------------------------------------------------------

  const drawn = new Set();
  const hiddenGroups = new Set();
  const shown = (value, share) => value === null || value === undefined ? '–'
    : share ? `${+(100 * value).toPrecision(3)} %` : `${+value.toPrecision(4)}`;

  function chartFigure(chart) {
    const plot = make('div', { class: 'plot' });
    const legend = make('div', { class: 'legend' });
    const numbers = make('details', {}, make('summary', { text: 'Numbers' }));
    numbers.addEventListener('toggle', () => {
      if (numbers.open && numbers.children.length === 1) numbers.append(asTable(chart));
    });
    const figure = make('figure', {},
      make('figcaption', { text: line(chart.title) },
        make('small', { text: line(chart.help || '') })), plot, legend, numbers);
    plot.setAttribute('role', 'img');
    plot.setAttribute('aria-label', line(chart.title) + ': ' + chart.series
      .filter((s) => !s.thin).map((s) => {
        const known = s.y.filter((y) => y !== null);
        return `${line(s.label)} from ${shown(known[0], chart.share)} to ` +
          shown(known[known.length - 1], chart.share);
      }).join('; '));
    const items = makeLegend(chart, legend, plot);
    figure.draw = () => draw(chart, plot, items);
    whenSeen.observe(figure);
    return figure;
  }
  function asTable(chart) {
    const series = chart.series.filter((s) => !s.thin);
    const places = [...new Set(series.flatMap((s) => s.x))].sort((a, b) => a - b);
    const head = make('tr', {}, make('th', { text: chart.x }),
      ...series.map((s) => make('th', { text: line(s.label) })));
    const at = series.map((s) => new Map(s.x.map((x, i) => [x, i])));
    const rows = places.map((x) => make('tr', {}, make('td', { text: shown(x) }),
      ...series.map((s, n) => {
        const i = at[n].get(x);
        let text = i === undefined ? '' : shown(s.y[i], chart.share);
        if (i !== undefined && s.low && s.low[i] !== null) {
          text += ` [${shown(s.low[i], chart.share)}, ${shown(s.high[i], chart.share)}]`;
        }
        return make('td', { class: 'n', text });
      })));
    return make('div', { class: 'scroll', tabindex: 0 },
      make('table', {}, make('thead', {}, head), make('tbody', {}, ...rows)));
  }
  const whenSeen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      whenSeen.unobserve(target);
      target.draw();
    }
  }, { rootMargin: '400px' });
  const whenSized = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const width = target.clientWidth;
      if (target.plot && width && target.plot.width !== width) {
        target.plot.setSize({ width, height: target.clientHeight });
      }
    }
  });

  function colorOf(series, n) {
    if (series.tone) return TONES[series.tone];
    return COLORS[(series.group ?? n) % COLORS.length];
  }
  function draw(chart, plot, items) {
    const style = getComputedStyle(root);
    const ink = style.getPropertyValue('--soft').trim();
    const axis = {
      stroke: ink, grid: { stroke: style.getPropertyValue('--grid').trim(), width: 1 },
      ticks: { show: false }, font: '11px system-ui, sans-serif',
    };
    const { columns, options, bands } = seriesOf(chart);
    plot.replaceChildren();
    // Means and single runs give the range; an interval of two seeds would hide them.
    const ys = chart.series.flatMap((s) => s.y).filter((y) => y !== null);
    const low = Math.min(...ys), high = Math.max(...ys);
    const room = (high - low) * .12 || Math.abs(high) * .1 || 1;
    const range = ys.length ? [low - (low < 0 || !chart.share ? room : Math.min(room, low)), high + room] : [0, 1];
    if (low >= 0 && range[0] < 0) range[0] = 0;
    const whole = [1, 2, 5].flatMap((n) => [...Array(15).keys()].map((k) => n * 10 ** k))
      .sort((a, b) => a - b);
    const values = (u, splits) => splits.map((v) => v === null ? '' : shown(v, chart.share));
    const u = new uPlot({
      width: plot.clientWidth || 300, height: plot.clientHeight || 220,
      legend: { show: false }, cursor: { drag: { x: true, y: false }, y: false },
      scales: {
        x: { time: false,
          ...(chart.kind === 'bars' && { range: (u, low, high) => [low - .02, high + .02] }) },
        y: { range: chart.kind === 'stack' ? [0, 1]
          : chart.kind === 'bars' ? [0, (high || 1) * 1.05] : range },
      },
      axes: [
        { ...axis, ...(chart.kind !== 'bars' && { incrs: whole }), size: 34, label: chart.x, labelSize: 14, labelFont: axis.font,
          values: (u, splits) => splits.map((v) => v === null ? '' : `${+v.toPrecision(6)}`) },
        { ...axis, size: 54, values },
      ],
      series: [{}, ...options], bands,
      hooks: {
        draw: [(u) => (chart.marks || []).forEach((x) => mark(u, x, ink))],
        setCursor: [(u) => readOut(u.cursor.idx)],
      },
    }, columns, plot);
    u.chart = chart;
    function readOut(at) {
      for (const { value, series } of items) {
        const x = at === null || at === undefined ? null : columns[0][at];
        const i = x === null ? -1 : series.x.indexOf(x);
        value.textContent = i < 0 ? '' : ` ${shown(series.y[i], chart.share)}`;
      }
    }
    plot.plot = u;
    whenSized.observe(plot);
    drawn.add({ plot, again: () => { u.destroy(); draw(chart, plot, items); } });
    showSeries(plot);
  }
  function mark(u, x, ink) {
    const at = Math.round(u.valToPos(x, 'x', true));
    u.ctx.save();
    u.ctx.strokeStyle = ink;
    u.ctx.setLineDash([4, 4]);
    u.ctx.beginPath();
    u.ctx.moveTo(at, u.bbox.top);
    u.ctx.lineTo(at, u.bbox.top + u.bbox.height);
    u.ctx.stroke();
    u.ctx.restore();
  }
  // One table of columns for uPlot, and what each column is.
  function seriesOf(chart) {
    const tables = [], options = [], bands = [];
    let below = null;
    chart.series.forEach((series, n) => {
      const color = colorOf(series, n);
      let y = series.y;
      if (chart.kind === 'stack') {
        y = y.map((v, i) => v === null ? null : v + (below ? below[i] ?? 0 : 0));
        below = y;
      }
      const option = {
        of: n, stroke: color, width: series.thin ? 1 : 2.5, spanGaps: true,
        alpha: series.thin ? .35 : 1, points: { show: series.x.length < 40 && !series.thin, size: 5 },
      };
      if (chart.kind === 'bars') {
        Object.assign(option, {
          paths: uPlot.paths.bars({ size: [.9, 60] }), fill: color + 'a0',
          width: 0, points: { show: false },
        });
      }
      if (chart.kind === 'stack') {
        Object.assign(option, { width: 1, points: { show: false } });
        if (n) bands.push({ series: [options.length + 1, options.length], fill: color + 'b0' });
        else option.fill = color + 'b0';
      }
      tables.push([series.x, y]);
      options.push(option);
      if (series.low) {
        const edge = { of: n, stroke: 'transparent', width: 0, points: { show: false }, spanGaps: true };
        tables.push([series.x, series.high], [series.x, series.low]);
        options.push(edge, { ...edge });
        bands.push({ series: [options.length - 1, options.length], fill: color + '30' });
      }
    });
    const columns = tables.length ? uPlot.join(tables) : [[], []];
    return { columns, options, bands };
  }
  // There before the chart is drawn, so that nothing moves when it is.
  function makeLegend(chart, legend, plot) {
    const items = [], byLabel = new Map();
    plot.off = new Set(); // series that were switched off
    chart.series.forEach((series, n) => {
      const key = series.thin ? series.label : n;
      if (!byLabel.has(key)) byLabel.set(key, []);
      byLabel.get(key).push(n);
    });
    for (const members of byLabel.values()) {
      const series = chart.series[members[0]];
      const swatch = make('i');
      swatch.style.background = colorOf(series, members[0]);
      swatch.style.opacity = series.thin ? .4 : 1;
      const value = make('span');
      const button = make('button', { type: 'button', 'aria-pressed': 'true' },
        swatch, line(series.label), value);
      button.addEventListener('click', () => {
        const on = button.getAttribute('aria-pressed') !== 'true';
        button.setAttribute('aria-pressed', on);
        members.forEach((n) => plot.off[on ? 'delete' : 'add'](n));
        showSeries(plot);
      });
      legend.append(button);
      if (!series.thin) items.push({ value, series });
    }
    return items;
  }
  function showSeries(plot) {
    const u = plot.plot;
    u?.series.forEach((series, i) => {
      if (!i) return; // x
      const show = !plot.off.has(series.of) &&
        !hiddenGroups.has(u.chart.series[series.of].group);
      if (series.show !== show) u.setSeries(i, { show });
    });
  }
  const showGroups = () => drawn.forEach((each) => showSeries(each.plot));
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
    const all = [...drawn];
    drawn.clear();
    all.forEach((each) => each.again());
  });

  function addCharts(summary) {
    const charts = find('charts');
    if (summary.groups.length > 1) {
      const boxes = summary.groups.map((label, n) => {
        const box = make('input', { type: 'checkbox', checked: '' });
        box.addEventListener('change', () => {
          hiddenGroups[box.checked ? 'delete' : 'add'](n);
          showGroups();
        });
        return make('label', { class: 'check' }, box, line(label));
      });
      charts.append(make('h2', { text: 'Curves' }),
        make('div', { class: 'controls', role: 'group', 'aria-label': 'Runs in the curves' },
          ...boxes));
    }
    for (const section of summary.sections) {
      const into = find(section.into);
      const figures = section.charts.map(chartFigure);
      if (!section.title) { into.append(...figures); continue; }
      into.append(make('section', {}, make('h2', { text: line(section.title) }),
        make('div', { class: 'charts' }, ...figures)));
    }
  }
  async function addAnyNumber() {
    const numbers = await unpack('numbers');
    const names = Object.keys(numbers);
    if (!names.length) return;
    const choice = make('select', {},
      ...names.map((name) => make('option', { value: name, text: line(name) })));
    const holder = make('div', { class: 'charts' });
    const show = () => holder.replaceChildren(chartFigure({
      title: choice.value, help: 'metrics.jsonl', x: 'step', kind: 'line',
      series: numbers[choice.value],
    }));
    choice.addEventListener('change', show);
    find('charts').append(make('section', {}, make('h2', { text: 'Any number by step' }),
      make('div', { class: 'controls' }, make('label', { text: 'Number' }, choice)), holder));
    show();
  }

  // ---- rollouts ------------------------------------------------------------------

  let rollouts = null;
  class Rollouts {
    constructor(tables) {
      this.tables = tables;
      const total = tables.reduce((sum, t) => sum + t.step.length, 0);
      this.size = total;
      this.run = new Uint16Array(total);
      this.at = new Uint32Array(total); // the place in its run's table
      let next = 0;
      tables.forEach((table, r) => {
        table.first = next;
        for (let i = 0; i < table.step.length; i++, next++) {
          this.run[next] = r;
          this.at[next] = i;
        }
        table.starts = [0];
        table.chunk.forEach((n, c) => table.starts.push(table.starts[c] + n));
      });
      this.cache = new Map();
    }
    get(row, name) { return this.tables[this.run[row]][name][this.at[row]]; }
    problem(row) {
      const table = this.tables[this.run[row]];
      return table.problems[table.problem[this.at[row]]];
    }
    reason(row) {
      const table = this.tables[this.run[row]];
      return table.reasons[table.reason[this.at[row]]];
    }
    async chunk(r, c) {
      const id = `texts-${r}-${c}`;
      if (!this.cache.has(id)) {
        if (this.cache.size > 60) this.cache.delete(this.cache.keys().next().value);
        this.cache.set(id, unpack(id));
      }
      return this.cache.get(id);
    }
    async texts(row) {
      const r = this.run[row], table = this.tables[r], at = this.at[row];
      let low = 0, high = table.chunk.length - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (table.starts[middle] <= at) low = middle; else high = middle - 1;
      }
      const { shared, rows } = await this.chunk(r, low);
      const [prompt, response, reference, further] = rows[at - table.starts[low]];
      return { prompt: shared[prompt], response, reference: shared[reference], further };
    }
  }

  const by = (get) => {
    const compare = (a, b) => {
      const x = get(a.original), y = get(b.original);
      if (x === y) return 0;
      if (x === null || x === undefined) return 1;
      if (y === null || y === undefined) return -1;
      if (typeof x === 'number' && typeof y === 'number') return x - y;
      return String(x) < String(y) ? -1 : 1;
    };
    return compare;
  };
  const levelValue = (level) =>
    level === null ? null : level.trim() !== '' && isFinite(level) ? Number(level) : level;

  function columnsOf(data) {
    const several = data.tables.length > 1;
    const leveled = data.tables.some((t) => t.problems.some((p) => p[1] !== null));
    const column = (id, title, get, width, more = {}) => ({ id, title, get, width, ...more });
    return [
      several && column('run', 'run', (r) => data.tables[data.run[r]].run, 16, { narrow: false }),
      column('step', 'step', (r) => data.get(r, 'step'), 10, { narrow: true }),
      column('problem', 'problem', (r) => data.problem(r)[0], 24, { narrow: true }),
      leveled && column('level', 'level', (r) => levelValue(data.problem(r)[1]), 10),
      column('sample', 'sample', (r) => data.get(r, 'sample'), 12),
      column('grade', 'grade', (r) => GRADES[data.get(r, 'grade')], 12, { narrow: true }),
      column('reward', 'reward', (r) => data.get(r, 'reward'), 12),
      column('length', 'tokens', (r) => data.get(r, 'length'), 12),
      column('reason', 'reason', (r) => data.reason(r), 12),
      column('reference', 'reference', (r) => data.problem(r)[3], 14),
      column('end', 'ends with', (r) => data.get(r, 'end'), 22),
    ].filter(Boolean);
  }

  function addRollouts(tables) {
    const data = rollouts = new Rollouts(tables);
    const holder = find('table');
    const all = tables.reduce((sum, t) => sum + t.of, 0);
    if (!data.size) {
      holder.append(make('p', { text: all ? 'The page was made without rollouts.'
        : 'The dump holds no rollouts.' }));
      return;
    }
    const columns = columnsOf(data);
    const T = tanstackTable;
    const filters = {
      run: (row, id, value) => data.run[row.original] === value,
      step: (row, id, [from, to]) => {
        const step = data.get(row.original, 'step');
        return step >= from && step <= to;
      },
      problem: (row, id, value) => data.problem(row.original)[0] === value,
      level: (row, id, value) => data.problem(row.original)[1] === value,
      grade: (row, id, value) => value === 'truncated'
        ? data.get(row.original, 'truncated') === 1
        : GRADES[data.get(row.original, 'grade')] === value,
      reason: (row, id, value) => data.reason(row.original) === value,
      end: (row, id, hits) => hits[row.original] === 1,
    };
    const table = T.constructTable({
      features: T.tableFeatures({
        coreReactivityFeature: T.storeReactivityBindings(),
        rowSortingFeature: T.rowSortingFeature,
        columnFilteringFeature: T.columnFilteringFeature,
        sortedRowModel: T.createSortedRowModel(),
        filteredRowModel: T.createFilteredRowModel(),
      }),
      data: Array.from({ length: data.size }, (_, i) => i),
      columns: columns.map((c) => ({
        id: c.id, accessorFn: c.get, sortFn: by(c.get),
        filterFn: filters[c.id] || (() => true), sortDescFirst: false,
      })),
    });
    const view = { table, columns, rows: [], current: -1 };

    // The table itself: of all rows those that are in sight.
    const head = make('tr', { 'aria-rowindex': 1 });
    for (const c of columns) {
      const button = make('button', { type: 'button', text: c.title });
      const th = make('th', { scope: 'col', class: c.narrow ? '' : 'wide', 'aria-sort': 'none' }, button);
      th.style.width = `${c.width}%`;
      button.addEventListener('click', () => {
        const now = table.store.state.sorting[0];
        const next = !now || now.id !== c.id ? [{ id: c.id, desc: false }]
          : now.desc ? [] : [{ id: c.id, desc: true }];
        table.setSorting(next);
        refresh();
      });
      head.append(th);
    }
    const body = make('tbody');
    const grid = make('table', {
      role: 'grid', tabindex: 0, id: 'grid', 'aria-label': 'Rollouts: arrows move, Enter opens, p shows the problem’s history',
    }, make('thead', {}, head), body);
    const frame = make('div', { class: 'grid' }, grid);
    const status = make('p', { role: 'status', id: 'count' });

    function paint() {
      const height = frame.clientHeight;
      const first = Math.max(0, Math.floor(frame.scrollTop / ROW) - 8);
      const last = Math.min(view.rows.length, first + Math.ceil(height / ROW) + 16);
      const space = (rows) => {
        const td = make('td');
        td.style.height = `${rows * ROW}px`;
        return make('tr', { class: 'space', 'aria-hidden': 'true' }, td);
      };
      const lines = [space(first)];
      for (let n = first; n < last; n++) {
        const row = view.rows[n].original;
        const tr = make('tr', { id: `row-${n}`, 'aria-rowindex': n + 2 });
        tr.row = n;
        if (n === view.current) {
          tr.className = 'current';
          tr.setAttribute('aria-selected', 'true');
        }
        for (const c of columns) {
          const value = c.get(row);
          const td = make('td', { class: c.narrow ? c.id : `wide ${c.id}`, role: 'gridcell' });
          td.textContent = value === null ? '–'
            : typeof value === 'number' ? `${+value.toPrecision(6)}` : line(value);
          if (c.id === 'grade') {
            td.className += ` g${data.get(row, 'grade')}`;
            if (data.get(row, 'truncated')) td.textContent += ', cut';
          }
          tr.append(td);
        }
        lines.push(tr);
      }
      lines.push(space(view.rows.length - last));
      body.replaceChildren(...lines);
      grid.setAttribute('aria-rowcount', view.rows.length + 1);
      if (view.current >= first && view.current < last) {
        grid.setAttribute('aria-activedescendant', `row-${view.current}`);
      } else grid.removeAttribute('aria-activedescendant');
    }
    let asked = false;
    frame.addEventListener('scroll', () => {
      if (asked) return;
      asked = true;
      requestAnimationFrame(() => { asked = false; paint(); });
    });
    new ResizeObserver(() => paint()).observe(frame);

    function refresh(keep) {
      view.rows = table.getRowModel().rows;
      const [sorting] = table.store.state.sorting;
      [...head.children].forEach((th, n) => th.setAttribute('aria-sort',
        !sorting || sorting.id !== columns[n].id ? 'none'
          : sorting.desc ? 'descending' : 'ascending'));
      if (!keep) {
        view.current = view.rows.length ? 0 : -1;
        frame.scrollTop = 0;
      }
      const rest = all > data.size ? ` on this page, of ${count(all)} in the dump` : '';
      status.textContent =
        `${count(view.rows.length)} of ${count(data.size)} rollouts${rest}${searching}`;
      paint();
      remember();
    }
    function moveTo(n) {
      if (!view.rows.length) return;
      view.current = Math.max(0, Math.min(view.rows.length - 1, n));
      const top = view.current * ROW, headHeight = head.clientHeight || ROW;
      if (top < frame.scrollTop) frame.scrollTop = top;
      const bottom = top + ROW + headHeight;
      if (bottom > frame.scrollTop + frame.clientHeight) {
        frame.scrollTop = bottom - frame.clientHeight;
      }
      paint();
    }
    grid.addEventListener('keydown', (event) => {
      if (event.target !== grid || event.ctrlKey || event.metaKey || event.altKey) return;
      const page = Math.max(1, Math.floor(frame.clientHeight / ROW) - 2);
      const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page };
      if (event.key in moves) moveTo(view.current + moves[event.key]);
      else if (event.key === 'Home') moveTo(0);
      else if (event.key === 'End') moveTo(view.rows.length - 1);
      else if (event.key === 'Enter' && view.current >= 0) open(view.current, true);
      else if (event.key === 'p' && view.current >= 0) history(problemAt(view.current));
      else return;
      event.preventDefault();
    });
    body.addEventListener('click', (event) => {
      const tr = event.target.closest('tr');
      if (!tr || tr.row === undefined) return;
      const n = tr.row;
      const ofProblem = event.target.classList.contains('problem');
      view.current = n;
      paint();
      grid.focus({ preventScroll: true });
      if (ofProblem) history(problemAt(n)); else open(n, false);
    });
    const problemAt = (n) => data.problem(view.rows[n].original)[0];

    // Filters.
    const chosen = {};
    function filter(id, value) {
      if (value === undefined) delete chosen[id]; else chosen[id] = value;
      table.setColumnFilters(Object.entries(chosen).map(([id, value]) => ({ id, value })));
      refresh();
    }
    const option = (value, text) => make('option', { value, text: line(text) });
    const selects = {};
    function select(id, title, values) {
      const choice = make('select', { id: `filter-${id}` }, option('', 'all'),
        ...values.map(([value, text]) => option(value, text)));
      choice.addEventListener('change', () => {
        const value = choice.selectedIndex ? values[choice.selectedIndex - 1][0] : undefined;
        filter(id, value);
      });
      selects[id] = choice;
      return make('label', { class: 'half', text: title }, choice);
    }
    const found = (get) => {
      const values = new Set();
      for (let r = 0; r < data.size; r++) values.add(get(r));
      return values;
    };
    const grades = [...found((r) => data.get(r, 'grade'))].sort()
      .map((g) => [GRADES[g], GRADES[g]]);
    if (tables.some((t) => t.truncated.includes(1))) grades.push(['truncated', 'truncated']);
    const reasons = [...found((r) => data.reason(r))].sort().slice(0, 500);
    const levels = [...found((r) => data.problem(r)[1])].filter((x) => x !== null)
      .sort((a, b) => {
        const x = levelValue(a), y = levelValue(b);
        return typeof x === 'number' && typeof y === 'number' ? x - y : a < b ? -1 : 1;
      }).slice(0, 500);
    const search = make('input', { type: 'search', id: 'search', placeholder: 'in ids, prompts, responses ( / )' });
    const [from, to] = ['from', 'to'].map((id) =>
      make('input', { type: 'number', min: 0, id: `step-${id}` }));
    const onSteps = () => {
      if (from.value === '' && to.value === '') return filter('step');
      filter('step', [from.value === '' ? -Infinity : +from.value,
        to.value === '' ? Infinity : +to.value]);
    };
    from.addEventListener('change', onSteps);
    to.addEventListener('change', onSteps);
    const chip = make('button', { type: 'button', id: 'one-problem', hidden: '' });
    chip.addEventListener('click', () => setProblem(undefined));
    function setProblem(name) {
      chip.hidden = name === undefined;
      chip.textContent = name === undefined ? '' : `problem ${line(name)} ✕`;
      filter('problem', name);
    }
    const clear = make('button', { type: 'button', text: 'Clear all', id: 'clear' });
    clear.addEventListener('click', () => {
      Object.values(selects).forEach((choice) => { choice.selectedIndex = 0; });
      search.value = from.value = to.value = '';
      Object.keys(chosen).forEach((id) => delete chosen[id]);
      searching = '';
      searches++;
      table.setSorting([]);
      setProblem(undefined);
    });
    const maths = make('input', { type: 'checkbox', id: 'maths', checked: '' });
    maths.addEventListener('change', () => {
      mathematics = maths.checked;
      if (reopen) reopen();
    });
    const controls = make('div', { class: 'controls' },
      make('label', { text: 'Search' }, search),
      ...(tables.length > 1
        ? [select('run', 'Run', tables.map((t, n) => [n, t.run]))] : []),
      select('grade', 'Grade', grades),
      select('reason', 'Reason', reasons.map((x) => [x, x])),
      ...(levels.length ? [select('level', 'Level', levels.map((x) => [x, x]))] : []),
      make('label', { class: 'half', text: 'Step from' }, from),
      make('label', { class: 'half', text: 'to' }, to),
      make('label', { class: 'check' }, maths, 'mathematics as formulas'), chip, clear);

    // Search: what the table has at once, then the texts, chunk by chunk.
    let searches = 0, searching = '', waiting = 0;
    search.addEventListener('input', () => {
      clearTimeout(waiting);
      waiting = setTimeout(runSearch, 150);
    });
    async function runSearch() {
      const mine = ++searches, query = search.value.toLowerCase();
      searching = '';
      if (!query) return filter('end');
      let hits = new Uint8Array(data.size);
      tables.forEach((t) => {
        const match = t.problems.map((p) => [p[0], p[2], p[3]]
          .some((text) => text.toLowerCase().includes(query)));
        for (let i = 0; i < t.step.length; i++) {
          if (match[t.problem[i]] || t.end[i].toLowerCase().includes(query)) {
            hits[t.first + i] = 1;
          }
        }
      });
      const total = tables.reduce((sum, t) => sum + t.chunk.length, 0);
      let done = 0, last = performance.now();
      searching = ', searching in the texts …';
      filter('end', hits);
      for (let r = 0; r < tables.length; r++) {
        for (let c = 0; c < tables[r].chunk.length; c++) {
          const { shared, rows } = await data.chunk(r, c);
          if (mine !== searches) return;
          const match = shared.map((x) => JSON.stringify(x).toLowerCase().includes(query) ||
            (typeof x === 'string' ? x : x.flat().join('\n')).toLowerCase().includes(query));
          const base = tables[r].first + tables[r].starts[c];
          rows.forEach((row, i) => {
            if (match[row[0]] || match[row[2]] || row[1].toLowerCase().includes(query)) {
              hits[base + i] = 1;
            }
          });
          done++;
          if (performance.now() - last > 400) {
            searching = `, ${Math.round(100 * done / total)} % of the texts searched`;
            hits = hits.slice(); // another array, so that the filter runs anew
            filter('end', hits);
            last = performance.now();
          }
        }
      }
      searching = '';
      filter('end', hits.slice());
    }

    // One rollout.
    let reopen = null;
    const detail = make('section', { id: 'detail', hidden: '', 'aria-label': 'One rollout' });
    const past = make('section', { id: 'history', hidden: '', 'aria-label': 'A problem’s history' });
    function leave(section) {
      section.hidden = true;
      section.replaceChildren();
      reopen = null;
      grid.focus({ preventScroll: true });
      frame.scrollIntoView({ block: 'nearest' });
    }
    for (const section of [detail, past]) {
      section.addEventListener('keydown', (event) => {
        if (event.key === 'Escape') leave(section);
      });
    }
    const button = (text, act, more) => make('button', { type: 'button', text, onclick: act, ...more });
    const facts = (row) => {
      const parts = [`step ${data.get(row, 'step')}`];
      if (tables.length > 1) parts.unshift(line(tables[data.run[row]].run));
      const level = data.problem(row)[1];
      if (level !== null) parts.push(`level ${line(level)}`);
      const sample = data.get(row, 'sample'), tokens = data.get(row, 'length');
      if (sample !== null) parts.push(`sample ${sample}`);
      parts.push(GRADES[data.get(row, 'grade')]);
      const reward = data.get(row, 'reward');
      if (reward !== null) parts.push(`reward ${+reward.toPrecision(4)}`);
      if (tokens !== null) parts.push(`${tokens} tokens`);
      if (data.get(row, 'truncated')) parts.push('truncated');
      if (data.reason(row) !== '–') parts.push(`reason: ${line(data.reason(row))}`);
      return parts.join(' · ');
    };
    async function open(n, focus) {
      moveTo(n);
      const row = view.rows[n].original, name = data.problem(row)[0];
      const { prompt, response, reference, further } = await data.texts(row);
      reopen = () => open(n, false);
      const title = make('h3', { tabindex: -1, text: line(name) });
      const prompts = typeof prompt === 'string' ? [textBox(prompt)]
        : prompt.flatMap(([role, content]) => [make('p', { text: line(role) }), textBox(content)]);
      detail.replaceChildren(title, make('p', { class: 'facts', text: facts(row) }),
        make('div', { class: 'controls' },
          button('Previous', () => open(view.current - 1, false), { id: 'previous', ...(n === 0 && { disabled: '' }) }),
          button('Next', () => open(view.current + 1, false), { id: 'next', ...(n + 1 >= view.rows.length && { disabled: '' }) }),
          button('All of this problem', () => history(name), { id: 'all-of' }),
          button('Close', () => leave(detail), { id: 'close' })),
        make('h3', { text: 'Prompt' }), ...prompts,
        make('h3', { text: 'Response' }), textBox(response),
        make('h3', { text: 'Reference' }), textBox(reference));
      if (further.length) {
        detail.append(make('p', { class: 'facts',
          text: further.map(([key, value]) => `${line(key)}: ${line(value)}`).join(' · ') }));
      }
      detail.hidden = false;
      if (focus) title.focus();
      detail.scrollIntoView({ block: 'nearest' });
    }

    // A problem: every visit of every run, the runs beside one another.
    async function history(name) {
      setProblem(name);
      detail.hidden = true;
      reopen = () => history(name);
      const title = make('h3', { tabindex: -1, text: `History of ${line(name)}` });
      const sides = make('div', { class: 'sides' });
      past.replaceChildren(title, make('div', { class: 'controls' },
        button('Close', () => { leave(past); setProblem(undefined); })), sides);
      past.hidden = false;
      const series = [];
      for (const table of tables) {
        const place = table.problems.findIndex((p) => p[0] === name);
        if (place < 0) continue;
        const visits = new Map();
        table.problem.forEach((p, i) => {
          if (p !== place) return;
          const step = table.step[i];
          if (!visits.has(step)) visits.set(step, []);
          visits.get(step).push(table.first + i);
        });
        const [, level, , reference] = table.problems[place];
        const lim = table.lim && table.lim[place];
        const facts = [`${visits.size} visit${visits.size > 1 ? 's' : ''}`, `reference ${line(reference)}`];
        if (level !== null) facts.push(`level ${line(level)}`);
        if (lim && lim.length) {
          facts.push(`LIM score ${shown(lim[0])}`, `weight ${shown(lim[1])}`);
        }
        const side = make('div', {}, make('h3', { text: line(table.run) }),
          make('p', { class: 'facts', text: facts.join(' · ') }));
        sides.append(side);
        const steps = [...visits.keys()];
        series.push({ label: table.run, group: null, x: steps, y: steps.map((step) => {
          const graded = visits.get(step).filter((r) => data.get(r, 'grade') < 2);
          return graded.length
            ? graded.filter((r) => data.get(r, 'grade') === 1).length / graded.length : null;
        }) });
        await addVisits(side, [...visits], 12);
      }
      title.after(make('div', { class: 'charts' }, chartFigure({
        title: 'Pass rate by step', help: 'of this problem', x: 'step', kind: 'line',
        share: true, series,
      })));
      title.focus();
      past.scrollIntoView({ block: 'start' });
    }
    async function addVisits(side, visits, most) {
      for (const [step, rows] of visits.splice(0, most)) {
        const right = rows.filter((r) => data.get(r, 'grade') === 1).length;
        const box = make('div', { class: 'visit' },
          make('strong', { text: `step ${step}: ${right} of ${rows.length} right` }));
        const same = new Map(); // responses that are alike are shown once
        for (const row of rows) {
          const { response } = await data.texts(row);
          if (!same.has(response)) same.set(response, []);
          same.get(response).push(row);
        }
        for (const [response, those] of same) {
          const grade = data.get(those[0], 'grade');
          box.append(make('div', { class: `g${grade}`,
            text: GRADES[grade] + (those.length > 1 ? ` × ${those.length}` : '') }), textBox(response));
        }
        side.append(box);
      }
      if (!visits.length) return;
      const more = button(`${visits.length} visits more`, async () => {
        more.remove();
        await addVisits(side, visits, 50);
      });
      side.append(more);
    }

    document.addEventListener('keydown', (event) => {
      const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName);
      if (event.key !== '/' || typing || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      search.focus();
    });

    // What a reload of a page of a run under way brings back.
    function remember() {
      if (!live) return;
      const kept = { sorting: table.store.state.sorting, search: search.value,
        from: from.value, to: to.value, problem: chosen.problem,
        selects: Object.fromEntries(Object.entries(selects).map(([id, x]) => [id, x.value])) };
      try { sessionStorage.setItem('limr_jax', JSON.stringify(kept)); } catch { /* none */ }
    }
    function remembered() {
      if (!live) return null;
      try { return JSON.parse(sessionStorage.getItem('limr_jax')); } catch { return null; }
    }
    function recall(kept) {
      if (!kept) return;
      if (kept.sorting) table.setSorting(kept.sorting.filter((s) => columns.some((c) => c.id === s.id)));
      for (const [id, value] of Object.entries(kept.selects || {})) {
        if (!selects[id] || !value) continue;
        selects[id].value = value;
        selects[id].dispatchEvent(new Event('change'));
      }
      from.value = kept.from || '';
      to.value = kept.to || '';
      if (from.value || to.value) onSteps();
      if (kept.problem !== undefined) setProblem(kept.problem);
      if (kept.search) { search.value = kept.search; runSearch(); }
    }
    holder.append(controls, status, frame, detail, past);
    const before = remembered(); // to refresh is to remember what is now
    refresh();
    recall(before);
    busy = () => !detail.hidden || !past.hidden || document.activeElement === search;
  }

  // ---- a run under way -----------------------------------------------------------

  let live = '';
  let busy = () => false;
  function follow() {
    const again = async () => {
      try {
        const answer = await fetch('/', { method: 'HEAD', cache: 'no-store' });
        const version = answer.headers.get('ETag');
        find('state').replaceChildren();
        if (version && version !== `"${live}"`) {
          if (!busy()) {
            try { sessionStorage.setItem('limr_jax_y', String(scrollY)); } catch { /* none */ }
            return location.reload();
          }
          find('state').append('There are newer numbers. ', make('button',
            { type: 'button', text: 'Show them', onclick: () => location.reload() }));
        }
      } catch {
        find('state').textContent = 'launch/watch.py does not answer: this page stays as it is.';
      }
      setTimeout(again, 3000);
    };
    setTimeout(again, 3000);
  }

  async function start() {
    const summary = await unpack('summary');
    live = summary.live;
    addCharts(summary);
    addRollouts(await unpack('rollout-columns'));
    root.classList.add('ready');
    root.dataset.ready = Math.round(performance.now());
    if (live) {
      let y = null;
      try {
        y = sessionStorage.getItem('limr_jax_y');
        sessionStorage.removeItem('limr_jax_y');
      } catch { /* none */ }
      if (y) scrollTo(0, +y);
      follow();
    }
    await addAnyNumber();
    root.classList.add('done');
  }
  start().catch((error) => {
    find('state').textContent = `The charts and the table cannot be shown here (${error.message}). ` +
      'What follows is without them.';
    for (const each of document.querySelectorAll('.nojs')) each.classList.remove('nojs');
    console.error(error);
  });
})();
