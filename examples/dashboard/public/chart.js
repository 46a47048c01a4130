// chart.js - one series as bars, by uPlot: how much came in each step, and from where on more may come
import uPlot from '/uplot.js';

const COMPACT = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });
const FULL = new Intl.NumberFormat('en');

const WHOLE = Array.from({ length: 48 }, (_, n) => [1, 2, 5][n % 3] * 10 ** Math.floor(n / 3));

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Clock times for a day and less, dates beyond.
function stamp(seconds, span) {
  const date = new Date(seconds * 1000);
  const day = { day: 'numeric', month: 'short' };
  const time = { hour: '2-digit', minute: '2-digit', hour12: false };
  return span > 86400 * 1.5 ? date.toLocaleDateString('en-GB', day) : date.toLocaleTimeString('en-GB', time);
}

export class Chart {
  // onPoint({ from, to, value } | null): what the pointer is over, its times in seconds
  constructor(element, onPoint) {
    this.element = element;
    this.onPoint = onPoint;
    this.data = [[], []];
    this.freshUntil = Infinity;
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(element);
  }

  size() {
    return { width: Math.max(this.element.clientWidth, 50), height: Math.max(this.element.clientHeight, 50) };
  }

  // times: starts of the steps in seconds; what comes after freshUntil is shaded
  show(times, values, freshUntil) {
    this.data = [times, values];
    this.freshUntil = freshUntil;
    if (!this.plot) this.draw();
    else this.plot.setData(this.data);
  }

  step() {
    return this.data[0].length > 1 ? this.data[0][1] - this.data[0][0] : 60;
  }

  // Anew, as when the colours have changed.
  draw() {
    this.plot?.destroy();
    const font = `12px ${getComputedStyle(document.body).fontFamily}`;
    const axis = { stroke: style('--quiet'), font, ticks: { show: false } };
    const range = () => {
      const [times] = this.data;
      return times.length ? [times[0], times[times.length - 1] + this.step()] : [0, 1];
    };
    this.plot = new uPlot({
      ...this.size(),
      padding: [8, 4, 0, 0],
      cursor: { y: false, points: { show: false }, drag: { x: false } },
      scales: {
        x: { time: true, range },
        y: { range: (_, low, high) => [Math.min(low ?? 0, 0), Math.max(high ?? 0, 1) * 1.06] },
      },
      axes: [
        { ...axis, grid: { show: false }, space: 70, size: 28,
          values: (plot, splits) => splits.map((at) => stamp(at, range()[1] - range()[0])) },
        { ...axis, grid: { stroke: style('--grid'), width: 1 }, space: 56, size: 52,
          incrs: WHOLE, values: (plot, splits) => splits.map((value) => COMPACT.format(value)) },
      ],
      series: [{}, {
        fill: style('--accent'), width: 0, points: { show: false },
        paths: uPlot.paths.bars({ size: [0.7, 40], align: 1, radius: 0.15 }),
      }],
      hooks: { drawClear: [(plot) => this.shade(plot)], setCursor: [(plot) => this.point(plot)] },
    }, this.data, this.element);
  }

  shade(plot) {
    const { ctx, bbox } = plot;
    const from = Math.max(plot.valToPos(this.freshUntil, 'x', true), bbox.left);
    if (!(from < bbox.left + bbox.width)) return;
    ctx.save();
    ctx.fillStyle = style('--grid');
    ctx.fillRect(from, bbox.top, bbox.left + bbox.width - from, bbox.height);
    ctx.restore();
  }

  point(plot) {
    const { left } = plot.cursor;
    const [times, values] = this.data;
    const at = left >= 0 ? plot.posToVal(left, 'x') : -1;
    const index = times.findIndex((time) => at >= time && at < time + this.step());
    this.onPoint(index < 0 ? null : {
      from: times[index], to: times[index] + this.step(), value: FULL.format(values[index]),
    });
  }
}
