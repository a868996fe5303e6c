import { createConfig } from "ponder";
import { parseAbi } from "viem";

export default createConfig({
  database: { kind: "postgres", connectionString: process.env.DATABASE_URL },
  chains: { local: { id: 31337, rpc: process.env.NODE_URL } },
  contracts: {
    Token: {
      abi: parseAbi(["event Transfer(address indexed from, address indexed to, uint256 amount)"]),
      chain: "local",
      address: process.env.TOKEN as `0x${string}`,
      startBlock: 1,
    },
  },
});
