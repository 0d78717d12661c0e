// A volunteer in this page: the core relays, this looks after what is of pages alone. One tab at a time, pauses, limits of
// the total, sleep and changes of network, what was relayed in all.
import { PageVolunteer } from '../../wasm/umbel.js';
import { chooseEngines, type SearchEngine, type SearchEngineState } from './engines';
import { asError, failed } from './failure';
import { load, requireWebRtc } from './module';
import { findNetwork, type Network } from './network';
import { Power } from './power';
import { openStorage, type Storage } from './storage';

export interface VolunteerState {
  on: boolean;
  phase: 'off' | 'starting' | 'registering' | 'connecting' | 'reachable' | 'unreachable' | 'paused' | 'error';
  /** In plain words, where there is something to say. */
  why?: string;
  /** Relays over which others can reach this one now. */
  gateways: number;
  circuits: number;
  /** Bytes passed on in the last second. */
  bytesNow: number;
  /** Bytes passed on in all, visits before included. */
  bytesTotal: number;
  identity?: string;
  /** Those of `searchEngines` that were chosen, and how each stands. */
  searchEngines: SearchEngineState[];
  /** Searches answered for others since the page began. */
  searches: number;
}

export interface VolunteerLimits {
  /** Bytes sent to relays a second, in the long run. Each that is passed on is received once and sent once. */
  bytesPerSecond?: number;
  /** Bytes passed on in all, counted from when the limit is set anew; with those of searches, and of what engines answered. */
  bytesTotal?: number;
  /** Where the browser tells. */
  onlyOnPower?: boolean;
  onlyUnmetered?: boolean;
  /**
   * Engines to search for others: names of those that the network's description has, or described here. None if left out. Each sees
   * this browser's address ask what others want to know, and this browser sees what they ask, though not who.
   */
  searchEngines?: (string | SearchEngine)[];
}

export interface Volunteer {
  readonly state: VolunteerState;
  setLimits(limits: VolunteerLimits): void;
  /**
   * Takes no more circuits at once; those that carry something go on for up to three seconds. The promise is kept when all
   * channels are closed.
   */
  stop(): Promise<void>;
}

export interface VolunteerOptions {
  /** The network, or the address of its description; `./umbel.json` beside the page if left out. */
  network?: Network | string;
  limits?: VolunteerLimits;
  onstate: (state: VolunteerState) => void;
}

/** What the core tells. */
interface CoreState {
  phase: VolunteerState['phase'];
  why?: string;
  gateways: number;
  circuits: number;
  /** Since the page began. */
  bytes: number;
  identity: string;
  engines: SearchEngineState[];
  searches: number;
}

const LOCK = 'umbel-volunteer';
const TOTAL = 'relayed';
const CERTIFICATE = 'certificate';
/** How often the total is kept. */
const KEEP_EVERY = 15_000;
/** A page that has not run for so long has slept, and its links are gone. */
const SLEPT = 15_000;
const LOOK_EVERY = 2_000;
const DAY = 24 * 60 * 60 * 1000;

const OTHER_TAB = 'Another tab of this browser is the volunteer; this tab takes over when that one closes.';
const MEMORY_ONLY = 'This browser stores nothing for this page, so the next visit will be another volunteer.';

/** Has the browser keep no list of what this page fetches: in it would stand what others ask. */
function forgetAddresses(): void {
  performance.setResourceTimingBufferSize(0);
  performance.clearResourceTimings();
}

/** Makes this page a volunteer until it is stopped. */
export async function volunteer(options: VolunteerOptions): Promise<Volunteer> {
  requireWebRtc();
  const page = new Page(options.limits ?? {}, options.onstate);
  page.show({ phase: 'starting' });
  try {
    const [network, storage, power] = await Promise.all([
      findNetwork(options.network), openStorage(), Power.watch(), load(),
    ]);
    await page.begin(network, storage, power);
  } catch (error) {
    await page.stop();
    throw error;
  }
  return page;
}

class Page implements Volunteer {
  state: VolunteerState = {
    on: true, phase: 'starting', gateways: 0, circuits: 0, bytesNow: 0, bytesTotal: 0, searchEngines: [], searches: 0,
  };
  #limits: VolunteerLimits;
  readonly #onstate: (state: VolunteerState) => void;
  #core: PageVolunteer | undefined;
  /** Engines that the network names. */
  #engines: SearchEngine[] = [];
  #storage: Storage | undefined;
  #power: Power | undefined;
  #running = false;
  #stopped = false;
  #ending: Promise<void> | undefined;
  /** The browser may keep the page for later; meanwhile it is no relay. */
  #away = false;
  /** This tab is the one. */
  #chosen = false;
  #release: (() => void) | undefined;
  readonly #listening = new AbortController();
  #looking: ReturnType<typeof setInterval> | undefined;
  /** Of earlier visits, and what this one adds to it. */
  #before = 0;
  #relayed = 0;
  /** The total when the limit on it was set. */
  #limitedFrom = 0;
  #keptAt = 0;
  #lookedAt = Date.now();
  #samples: { at: number; bytes: number }[] = [];

  constructor(limits: VolunteerLimits, onstate: (state: VolunteerState) => void) {
    this.#limits = limits;
    this.#onstate = onstate;
  }

  async begin(network: Network, storage: Storage, power: Power): Promise<void> {
    this.#storage = storage;
    this.#power = power;
    this.#engines = network.engines ?? [];
    const before = await storage.get(TOTAL);
    this.#before = typeof before === 'number' && before >= 0 ? before : 0;
    this.#limitedFrom = this.#before;
    await this.#beTheOnlyTab();
    const certificate = await this.#certificate();
    this.#core = (await failed(
      PageVolunteer.make(network.directories, network.authorities, storage, certificate, (state: CoreState) =>
        this.#told(state),
      ),
    )) as PageVolunteer;
    this.setLimits(this.#limits);
    this.#listen();
    this.#decide();
  }

  setLimits(limits: VolunteerLimits): void {
    // First, since only this can fail.
    const engines = chooseEngines(limits.searchEngines ?? [], this.#engines);
    if (engines.length > 0) forgetAddresses();
    try {
      this.#core?.search_engines(engines.map(({ name }) => name), engines.map(({ description }) => description));
    } catch (error) {
      throw asError(error);
    }
    if (limits.bytesTotal !== this.#limits.bytesTotal) this.#limitedFrom = this.#before + this.#relayed;
    this.#limits = { ...limits };
    const { bytesPerSecond } = limits;
    this.#core?.limit(bytesPerSecond && bytesPerSecond > 0 ? bytesPerSecond : undefined);
    this.#decide();
  }

  stop(): Promise<void> {
    return (this.#ending ??= this.#end());
  }

  async #end(): Promise<void> {
    this.#stopped = true;
    clearInterval(this.#looking);
    this.#power?.close();
    this.#listening.abort();
    // Off as the person sees it, though what others were in the middle of may still end.
    this.show({ on: false, phase: 'off', why: undefined, gateways: 0, circuits: 0, bytesNow: 0 });
    const leaving = new AbortController();
    addEventListener('pagehide', () => this.#core?.pause(''), { signal: leaving.signal });
    try {
      await this.#core?.finish();
    } finally {
      leaving.abort();
    }
    this.show({ bytesTotal: this.#before + this.#relayed });
    // Another tab is the same relay.
    this.#release?.();
    await this.#keepTotal();
  }

  show(change: { [Key in keyof VolunteerState]?: VolunteerState[Key] | undefined }): void {
    const state = { ...this.state, ...change };
    if (state.why === undefined) delete state.why;
    this.state = state as VolunteerState;
    this.#onstate(this.state);
  }

  /** What the core tells, with what only the page knows. */
  #told(told: CoreState): void {
    this.#relayed = told.bytes;
    if (this.#stopped) return;
    const { phase, gateways, circuits, identity, engines: searchEngines, searches } = told;
    const memoryOnly = phase === 'reachable' && this.#storage?.lasting === false ? MEMORY_ONLY : undefined;
    const bytesTotal = this.#before + this.#relayed;
    const why = told.why ?? memoryOnly;
    this.show({ phase, why, gateways, circuits, identity, bytesTotal, bytesNow: this.#now(), searchEngines, searches });
    // Whatever follows from it comes after the core has had its say.
    queueMicrotask(() => this.#decide());
  }

  /** Bytes of the last second, from what has been seen since a little before it. */
  #now(): number {
    const at = performance.now();
    this.#samples.push({ at, bytes: this.#relayed });
    while (this.#samples.length > 2 && (this.#samples[1]?.at ?? at) < at - 1000) this.#samples.shift();
    const first = this.#samples[0];
    const took = first ? at - first.at : 0;
    return first && took > 100 ? Math.round(((this.#relayed - first.bytes) * 1000) / Math.max(took, 1000)) : 0;
  }

  /** Runs or pauses, as everything stands. */
  #decide(): void {
    if (this.#stopped || this.#away || !this.#core) return;
    const why = this.#reasonToPause();
    if (why === undefined) {
      if (!this.#running) {
        this.#running = true;
        this.#core.start();
      }
    } else if (this.#running || this.state.phase !== 'paused' || this.state.why !== why) {
      this.#running = false;
      this.#core.pause(why);
    }
  }

  #reasonToPause(): string | undefined {
    const { bytesTotal, onlyOnPower, onlyUnmetered } = this.#limits;
    if (!this.#chosen) return OTHER_TAB;
    if (bytesTotal !== undefined && bytesTotal > 0 && this.#before + this.#relayed - this.#limitedFrom >= bytesTotal) {
      return 'The amount that you set has been forwarded.';
    }
    if (onlyOnPower && this.#power?.onBattery) return 'This device runs on its battery.';
    if (onlyUnmetered && this.#power?.metered) return 'This network is metered, or the browser saves data.';
    if (navigator.onLine === false) return 'This device is offline.';
    return undefined;
  }

  #listen(): void {
    const { signal } = this.#listening;
    this.#power?.addEventListener('change', () => this.#decide(), { signal });
    addEventListener('offline', () => this.#decide(), { signal });
    // Another network, other addresses: the links from before are worth nothing.
    addEventListener('online', () => this.#startAnew(), { signal });
    document.addEventListener('visibilitychange', () => this.#look(), { signal });
    // Relays learn at once, instead of by our silence. The page may come back from the browser's cache.
    addEventListener('pagehide', () => {
      void this.#keepTotal();
      this.#away = true;
      this.#running = false;
      this.#core?.pause('');
    }, { signal });
    addEventListener('pageshow', () => {
      this.#away = false;
      this.#decide();
    }, { signal });
    this.#looking = setInterval(() => this.#look(), LOOK_EVERY);
  }

  /** Notices that the device has slept, and keeps the total. */
  #look(): void {
    const now = Date.now();
    // A hidden page's timers may come once a minute, but then its links live.
    const slept = now - this.#lookedAt > SLEPT && !document.hidden;
    this.#lookedAt = now;
    if (slept && this.state.gateways === 0) this.#startAnew();
    if (now - this.#keptAt > KEEP_EVERY) void this.#keepTotal();
    this.#decide();
  }

  #startAnew(): void {
    if (this.#running) this.#core?.start();
    else this.#decide();
  }

  async #keepTotal(): Promise<void> {
    this.#keptAt = Date.now();
    if (this.#relayed > 0) await this.#storage?.put(TOTAL, this.#before + this.#relayed);
  }

  /** Two tabs with one identity would fight over it. */
  async #beTheOnlyTab(): Promise<void> {
    const { locks } = navigator;
    if (!locks) {
      this.#chosen = true;
      return;
    }
    const released = new Promise<void>((resolve) => (this.#release = resolve));
    const hold = async (lock: Lock | null) => {
      if (!lock) return false;
      // Stopped while it waited.
      if (this.#stopped) return true;
      this.#chosen = true;
      await released;
      return true;
    };
    await new Promise<void>((decided) => {
      const first = async (lock: Lock | null) => {
        const held = hold(lock);
        decided();
        return held;
      };
      void locks.request(LOCK, { ifAvailable: true }, first).then((held) => {
        if (held) return;
        const { signal } = this.#listening;
        const later = async (lock: Lock | null) => {
          const before = await this.#storage?.get(TOTAL);
          if (typeof before === 'number') this.#before = before - this.#relayed;
          const held = hold(lock);
          this.#decide();
          return held;
        };
        return locks.request(LOCK, { signal }, later);
      }).catch(() => decided());
    });
  }

  /** The certificate that this volunteer shows its neighbours, the same for as long as it lasts. */
  async #certificate(): Promise<RTCCertificate | undefined> {
    try {
      const kept = await this.#storage?.get(CERTIFICATE);
      if (kept instanceof RTCCertificate && kept.expires > Date.now() + DAY) return kept;
      const made = await RTCPeerConnection.generateCertificate({ name: 'ECDSA', namedCurve: 'P-256' } as EcKeyGenParams);
      await this.#storage?.put(CERTIFICATE, made);
      return made;
    } catch {
      // One is made for each link then.
      return undefined;
    }
  }
}
