// What the browser tells about power and about the connection's cost; where it tells nothing, nothing is held against it.

interface Battery extends EventTarget { readonly charging: boolean }
interface Connection extends EventTarget { readonly type?: string; readonly saveData?: boolean }

export class Power extends EventTarget {
  readonly #battery: Battery | undefined;
  readonly #connection: Connection | undefined;
  readonly #listening = new AbortController();

  private constructor(battery: Battery | undefined, connection: Connection | undefined) {
    super();
    this.#battery = battery;
    this.#connection = connection;
    const { signal } = this.#listening;
    const tell = () => this.dispatchEvent(new Event('change'));
    battery?.addEventListener('chargingchange', tell, { signal });
    connection?.addEventListener('change', tell, { signal });
  }

  static async watch(): Promise<Power> {
    const told = navigator as { getBattery?: () => Promise<Battery>; connection?: Connection };
    const battery = await told.getBattery?.().catch(() => undefined);
    return new Power(battery, told.connection);
  }

  get onBattery(): boolean {
    return this.#battery?.charging === false;
  }

  get metered(): boolean {
    return this.#connection?.saveData === true || this.#connection?.type === 'cellular';
  }

  close(): void {
    this.#listening.abort();
  }
}
